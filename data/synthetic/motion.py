"""Scenes whose motion is known: textured planes under a moving camera, and the exact flow from frame to frame.

What they are for is to learn how motion goes on where it cannot be seen: the camera pans, turns, zooms and speeds up,
and shapes go their own ways before it, so that flow is neither constant nor smooth.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from data.masks import MaskSampler
from data.pipeline import StepDataset, bucket_of_step, check_split, stack_steps
from m3ddm_jax.scenes import sprites, textures
from m3ddm_jax.scenes.layers import blend, translation

# The most there is of each, by frame: of ways in parts of the short side, of angles in radians, of zooms in logarithms.
_SPEED = np.array([0.04, 0.04, 0.05, 0.05])
_GAIN = 0.1 * _SPEED  # what is added with every frame
_MOST_SHAPES = 3
_SHAPE_SIZES = (0.25, 0.9)  # parts of the short side
_STILL = 0.25  # chance that a camera or a shape does not move in one of the four ways
_FPS = 24.0
_SCENE = 3  # beside the numbers that data.pipeline's random streams have


@dataclasses.dataclass(frozen=True)
class Motion:
    """A similarity that changes steadily; x, y in pixels, angle in radians, zoom a logarithm, about `centre` (x, y).

    speed, gain: float [4], of x, y, angle and zoom by frame, and of that speed by frame.
    """

    speed: np.ndarray
    gain: np.ndarray
    centre: tuple[float, float]

    def matrix(self, time: float) -> np.ndarray:
        """Returns the [3,3] matrix from places at time 0 to those at a time counted in frames."""
        x, y, angle, zoom = time * self.speed + 0.5 * time**2 * self.gain
        cosine, sine = np.exp(zoom) * np.cos(angle), np.exp(zoom) * np.sin(angle)
        turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
        across, down = self.centre
        return translation(across + x, down + y) @ turn @ translation(-across, -down)


class Plane(NamedTuple):
    """A flat image, float32 [h,w,4] with colours multiplied by alpha, that at time 0 lies with its first pixel at
    (left, top) and goes its own way; None: it stands still."""

    image: np.ndarray
    left: float
    top: float
    motion: Motion | None = None


@dataclasses.dataclass(frozen=True)
class MotionScene:
    """Planes, the farthest first, before a camera; what is seen of the world is height x width pixels."""

    planes: Sequence[Plane]
    camera: Motion
    height: int
    width: int

    def frame(self, time: float) -> np.ndarray:
        """Draws the frame at a time counted in frames: uint8 [H,W,3], RGB."""
        frame = np.zeros((self.height, self.width, 3), np.float32)
        for plane, matrix in zip(self.planes, self._matrices(time), strict=True):
            blend(frame, self._seen(plane.image, matrix))
        return np.clip(255 * frame + 0.5, 0, 255).astype(np.uint8)

    def flow(self, time: float, later: float) -> np.ndarray:
        """Returns by how far each pixel of the frame at `time` has moved at `later`: float32 [H,W,2], (dx, dy)."""
        owner = np.zeros((self.height, self.width), np.int32)
        before, after = self._matrices(time), self._matrices(later)
        for number, (plane, matrix) in enumerate(zip(self.planes, before, strict=True)):
            owner[self._seen(plane.image[..., 3], matrix) >= 0.5] = number
        moves = after @ np.linalg.inv(before) - np.eye(3)
        rows, columns = np.mgrid[: self.height, : self.width]
        place = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
        flows = np.stack([place @ move[:2].T for move in moves]).astype(np.float32)
        return flows[owner, rows, columns]

    def _matrices(self, time: float) -> np.ndarray:
        """From the pixels of each plane to those of the frame: [planes,3,3]."""
        own = [np.eye(3) if plane.motion is None else plane.motion.matrix(time) for plane in self.planes]
        places = [translation(plane.left, plane.top) for plane in self.planes]
        return self.camera.matrix(time) @ np.stack(own) @ np.stack(places)

    def _seen(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        return cv2.warpAffine(image, matrix[:2], (self.width, self.height), flags=cv2.INTER_LINEAR)


def draw_scene(rng: np.random.Generator, last: float, height: int, width: int) -> MotionScene:
    """Draws a scene that can be seen from time -last to last: a ground, and up to _MOST_SHAPES shapes."""
    unit = min(height, width)
    camera = _draw_motion(rng, unit, (width / 2, height / 2))
    corners = np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]])
    seen = np.concatenate([np.linalg.inv(camera.matrix(t)) @ corners for t in np.linspace(-last, last, 9)], axis=1)
    (left, top), (right, bottom) = np.floor(seen[:2].min(axis=1)) - 2, np.ceil(seen[:2].max(axis=1)) + 2
    image = textures.any_texture(rng, int(bottom - top), int(right - left), 0.6 * unit)
    planes = [Plane(sprites.cut_out(image, np.ones(image.shape[:2])), left, top)]
    for _ in range(rng.integers(_MOST_SHAPES + 1)):
        size = int(unit * rng.uniform(*_SHAPE_SIZES))
        across, down = rng.uniform(0, width), rng.uniform(0, height)
        motion = _draw_motion(rng, unit, (across, down))
        planes.append(Plane(sprites.blob(rng, size), across - size / 2, down - size / 2, motion))
    return MotionScene(planes, camera, height, width)


def _draw_motion(rng: np.random.Generator, unit: float, centre: tuple[float, float]) -> Motion:
    scale = np.array([unit, unit, 1, 1]) * (rng.random(4) >= _STILL)
    return Motion(scale * _SPEED * rng.uniform(-1, 1, 4), scale * _GAIN * rng.uniform(-1, 1, 4), centre)


def make_motion_batches(
    *,
    batch_size: int,
    num_frames: int,
    interval: int,
    buckets: Sequence[tuple[int, int]],
    masks: MaskSampler,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    workers: int = 0,
) -> StepDataset:
    """Makes the endless data set of this process's part of every batch of clips of such scenes, all of them different.

    Arguments and iterators are as those of data.pipeline.make_batches. A batch is a dict, B = batch_size /
    process_count: video uint8 [B,num_frames,H,W,3] RGB; mask uint8 [B,num_frames,H,W,1], 1 = unknown; flow float32
    [B,T,H,W,2], from every interval-th frame to the one after it; clip_id str [B]. Raises ValueError for a batch that
    does not split over the processes, and for an interval after which no frame is left.
    """
    check_split(batch_size, process_index, process_count)
    if num_frames < 2 or interval < 1:
        raise ValueError(f"{num_frames} frames at an interval of {interval}: 2 or more at 1 or more are accepted")
    local = batch_size // process_count

    def load(step: int, place: int) -> dict[str, np.ndarray]:
        example = step * batch_size + process_index * local + place
        rng = np.random.default_rng([seed, example, _SCENE])
        height, width = bucket_of_step(seed, step, buckets)
        times = np.arange(num_frames) - (num_frames - 1) / 2
        scene = draw_scene(rng, times[-1], height, width)
        return {
            "video": np.stack([scene.frame(time) for time in times]),
            "mask": masks(rng, num_frames, height, width).mask,
            "flow": np.stack([scene.flow(time, time + 1) for time in times[:-1:interval]]),
            "clip_id": np.str_(f"motion/{seed}/{example}"),
        }

    return stack_steps(load, local, num_threads, workers)
