"""Synthetic video: procedural scenes under a moving camera, with objects moving through them.

    python -m data.synthetic OUT.mp4 [--size=512x512] [--frames=48] [--seed=17]

writes one scene as an H.264 video. Any frame of a scene can be drawn alone, and a scene never ends: all motion is
smooth and bounded, so that what leaves the frame comes back.
"""

import re
import sys

import numpy as np
import tqdm
from absl import app, flags

from data.encode import encode_video
from data.layers import Camera, smooth_path
from data.worlds import WORLDS
from m3ddm_jax.files.writing import write_file

FPS = 24
MIN_SIDE = 16


class Scene:
    """One scene, fixed by its seed; height and width in pixels. Raises ValueError for a side under MIN_SIDE."""

    def __init__(self, seed: int, height: int, width: int):
        if min(height, width) < MIN_SIDE:
            raise ValueError(f"a scene needs at least {MIN_SIDE}x{MIN_SIDE} pixels, found {height}x{width}")
        rng = np.random.default_rng(seed)
        builders, weights = zip(*WORLDS, strict=True)
        world = builders[rng.choice(len(builders), p=weights)](rng, height, width)
        unit, moves = min(height, width), rng.random(4) < 0.75  # a camera may also stand still in some ways
        reach = np.array([world.reach_x * unit, world.reach_y * unit, world.reach_angle, world.reach_zoom])
        paths = [smooth_path(rng, amplitude) for amplitude in reach * moves * rng.uniform(0.3, 1, 4)]
        self._camera = Camera(*paths, height, width)
        self._parts = world.parts
        self._size = (height, width)
        self._light = smooth_path(rng, rng.uniform(0, 0.08), 300, 60)

    def frame(self, index: int) -> np.ndarray:
        """Draws the frame at a time counted in frames: uint8 [H,W,3], RGB."""
        frame = np.zeros((*self._size, 3), np.float32)
        view = self._camera.view(index)
        for part in self._parts:
            part.draw(frame, view)
        frame *= 255 * (1 + self._light(index))
        return np.clip(frame + 0.5, 0, 255).astype(np.uint8)


def scene(seed: int, num_frames: int, height: int, width: int) -> np.ndarray:
    """Draws the first frames of a Scene: uint8 [T,H,W,3], RGB."""
    drawn = Scene(seed, height, width)
    return np.stack([drawn.frame(index) for index in range(num_frames)])


def main(arguments: list[str]) -> None:
    """Writes one scene to the file named on the command line; exits 2 with one line where it cannot."""
    try:
        write_scene(arguments[1:], flags.FLAGS.size, flags.FLAGS.frames, flags.FLAGS.seed)
    except (ValueError, OSError) as error:
        print(f"data.synthetic: {error}", file=sys.stderr)
        sys.exit(2)


def write_scene(paths: list[str], size: str, num_frames: int, seed: int) -> None:
    """Writes a scene of size "WIDTHxHEIGHT" to the one file in `paths`; leaves nothing behind where that fails."""
    if len(paths) != 1 or not paths[0].endswith(".mp4"):
        raise ValueError(f"one output file ending in .mp4 is needed, found {paths}")
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    width, height = map(int, match.groups()) if match else (1, 1)
    if width % 2 or height % 2:
        raise ValueError(f"--size must be WIDTHxHEIGHT in pixels, both even, found {size!r}")
    drawn = Scene(seed, height, width)
    encoded = encode_video((drawn.frame(index) for index in tqdm.trange(num_frames, unit="frame")), FPS)
    write_file(paths[0], encoded)


if __name__ == "__main__":
    # here, not above: the module is imported by programs with flags of their own
    flags.DEFINE_string("size", "512x512", "Width x height of the video in pixels, both even.")
    flags.DEFINE_integer("frames", 48, f"Length of the video in frames, {FPS} a second.", lower_bound=1)
    flags.DEFINE_integer("seed", 17, "Which scene.", lower_bound=0)
    app.run(main)
