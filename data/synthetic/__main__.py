"""Write a sample scene as an H.264 video.

python -m data.synthetic OUT.mp4 [--size=512x512] [--frames=48] [--seed=17]
"""

import inspect
import re

import tqdm
from absl import flags

from data.encode import encode_video
from m3ddm_jax import cli
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.scenes.scene import FPS, Scene, sample_frames


def main(path: str) -> None:
    """Writes one scene to the file named on the command line."""
    write_scene(path, flags.FLAGS.size, flags.FLAGS.frames, flags.FLAGS.seed)


def write_scene(path: str, size: str, num_frames: int, seed: int) -> None:
    """Writes a scene of size "WIDTHxHEIGHT"; leaves nothing behind where that fails."""
    if not path.endswith(".mp4"):
        raise ValueError(f"OUT must end in .mp4, found {path!r}")
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    width, height = map(int, match.groups()) if match else (1, 1)
    if width % 2 or height % 2:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, both even, found {size!r}")
    drawn = Scene(seed, height, width)
    encoded = encode_video((drawn.frame(index) for index in tqdm.trange(num_frames, unit="frame")), FPS)
    write_file(path, encoded)


if __name__ == "__main__":
    default = {name: parameter.default for name, parameter in inspect.signature(sample_frames).parameters.items()}
    size = f"{default['width']}x{default['height']}"
    flags.DEFINE_string("size", size, "Width x height of the video in pixels, both even.")
    flags.DEFINE_integer(
        "frames", default["num_frames"], f"Length of the video in frames, {FPS} a second.", lower_bound=1
    )
    flags.DEFINE_integer("seed", default["seed"], "Which scene.", lower_bound=0)
    cli.run("data.synthetic", main, "OUT")
