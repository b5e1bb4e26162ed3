"""Write one synthetic scene as an H.264 video.

python -m data.synthetic OUT.mp4 [--size=512x512] [--frames=48] [--seed=17]
"""

import re

import tqdm
from absl import flags

from data.encode import encode_video
from data.synthetic import scenes
from m3ddm_jax import cli
from m3ddm_jax.files.writing import write_file


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
    drawn = scenes.Scene(seed, height, width)
    encoded = encode_video((drawn.frame(index) for index in tqdm.trange(num_frames, unit="frame")), scenes.FPS)
    write_file(path, encoded)


if __name__ == "__main__":
    flags.DEFINE_string("size", "512x512", "Width x height of the video in pixels, both even.")
    flags.DEFINE_integer("frames", 48, f"Length of the video in frames, {scenes.FPS} a second.", lower_bound=1)
    flags.DEFINE_integer("seed", 17, "Which scene.", lower_bound=0)
    cli.run("data.synthetic", main, "OUT")
