"""What synthetic scenes are made of: a camera, and flat parts drawn back to front.

Images are float32 sRGB in 0..1, [h,w,3] opaque or [h,w,4] with alpha and colours multiplied by it. World coordinates
are pixels of the frame at rest, x to the right and y down. A part of depth d follows the camera's sideways motion d
times as far as one of depth 1, which is parallax.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import cv2
import numpy as np

Path = Callable[[float], float]


class View(NamedTuple):
    """The camera at one time: `matrix` [3,3] maps world to frame but for `x`, its place, which parts scale by depth."""

    matrix: np.ndarray
    x: float
    time: float


class Part(Protocol):
    """Something that draws itself over a frame, float32 [h,w,3], in place."""

    def draw(self, frame: np.ndarray, view: View) -> None: ...


def smooth_path(rng: np.random.Generator, amplitude: float, slowest: float = 240.0, fastest: float = 80.0) -> Path:
    """Draws a bounded smooth motion time -> place: two sinusoids with periods in fastest..slowest frames."""
    periods = rng.uniform(fastest, slowest, 2)
    phases = rng.uniform(0, 2 * np.pi, 2)
    shares = amplitude * np.array([0.75, 0.25])
    return lambda time: float(shares @ np.sin(2 * np.pi * time / periods + phases))


@dataclasses.dataclass(frozen=True)
class Camera:
    """Camera motion about the frame's centre; x, y in pixels, angle in radians, zoom a logarithm."""

    x: Path
    y: Path
    angle: Path
    zoom: Path
    height: int
    width: int

    def view(self, time: float) -> View:
        """Returns the View at a time counted in frames."""
        angle, scale = self.angle(time), np.exp(self.zoom(time))
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        centre_x, centre_y = self.width / 2, self.height / 2
        x, y = centre_x, centre_y + self.y(time)
        matrix = np.array(
            [
                [cosine, -sine, centre_x - cosine * x + sine * y],
                [sine, cosine, centre_y - sine * x - cosine * y],
                [0, 0, 1],
            ]
        )
        return View(matrix, self.x(time), time)


def translation(x: float, y: float) -> np.ndarray:
    """Returns the [3,3] matrix that moves by (x, y)."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def blend(frame: np.ndarray, image: np.ndarray) -> None:
    """Puts an image with alpha (colours multiplied by it) over a frame, in place."""
    frame *= 1 - image[..., 3:]
    frame += image[..., :3]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A flat image whose first pixel lies at (left, top), at a depth, drifting sideways by itself."""

    image: np.ndarray
    left: float
    top: float
    depth: float = 1.0
    drift: Path = lambda time: 0.0

    def draw(self, frame: np.ndarray, view: View) -> None:
        """Draws the layer; beyond its borders an opaque image is mirrored and any other repeats its last pixels."""
        place = translation(self.left - self.depth * view.x + self.drift(view.time), self.top)
        opaque = self.image.shape[2] == 3
        warped = cv2.warpAffine(
            self.image,
            (view.matrix @ place)[:2],
            frame.shape[1::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101 if opaque else cv2.BORDER_REPLICATE,
        )
        if opaque:
            frame[:] = warped
        else:
            blend(frame, warped)


@dataclasses.dataclass(frozen=True)
class Mover:
    """A small image with alpha on a path: x, y of its centre, angle, log-scale; `flap` is a log-scale of its height."""

    image: np.ndarray
    x: Path
    y: Path
    angle: Path = lambda time: 0.0
    zoom: Path = lambda time: 0.0
    flap: Path = lambda time: 0.0
    depth: float = 1.0

    def draw(self, frame: np.ndarray, view: View) -> None:
        """Draws the image where it is in sight."""
        time = view.time
        angle, scale = self.angle(time), np.exp(self.zoom(time))
        turn = scale * np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        turn[2, 2] = 1
        height, width = self.image.shape[:2]
        centred = np.diag([1, np.exp(self.flap(time)), 1.0]) @ translation(-width / 2, -height / 2)
        matrix = view.matrix @ translation(self.x(time) - self.depth * view.x, self.y(time)) @ turn @ centred
        corners = matrix[:2] @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]])
        left, top = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 1, 0)
        right, bottom = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 2, frame.shape[1::-1])
        if right <= left or bottom <= top:
            return
        window = translation(-left, -top) @ matrix
        blend(
            frame[top:bottom, left:right],
            cv2.warpAffine(self.image, window[:2], (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR),
        )


@dataclasses.dataclass(frozen=True)
class Floor:
    """A level plane below `horizon` (a row), seen in perspective; its texture has one texel a pixel at row `near`.

    Towards the horizon, where texels are smaller than pixels, it fades into `haze`, a colour, and so does not flicker.
    """

    image: np.ndarray
    horizon: float
    near: float
    centre: float
    haze: np.ndarray
    drift_x: Path = lambda time: 0.0
    drift_z: Path = lambda time: 0.0

    def draw(self, frame: np.ndarray, view: View) -> None:
        """Draws the plane over what lies below the horizon."""
        height, width = frame.shape[:2]
        drop = self.near - self.horizon
        # frame at rest (u, v) -> plane: x = (u - centre) drop / (v - horizon), z = drop^2 / (v - horizon)
        to_plane = np.array([[drop, 0, -self.centre * drop], [0, 0, drop * drop], [0, 1, -self.horizon]])
        rows, columns = self.image.shape[:2]
        to_texture = (
            translation(columns / 2 + view.x + self.drift_x(view.time), -drop + 0.1 * rows + self.drift_z(view.time))
            @ to_plane
        )
        matrix = to_texture @ np.linalg.inv(view.matrix)
        warped = cv2.warpPerspective(
            self.image,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        inverse = np.linalg.inv(view.matrix)[1]
        below = (
            inverse[0] * np.arange(width)[None] + inverse[1] * np.arange(height)[:, None] + inverse[2] - self.horizon
        )
        clear = np.clip(2.2 * below / drop - 0.1, 0, 1).astype(np.float32)[..., None]
        alpha = np.clip(below + 0.5, 0, 1).astype(np.float32)[..., None]
        frame *= 1 - alpha
        frame += alpha * (self.haze + (warped - self.haze) * clear)
