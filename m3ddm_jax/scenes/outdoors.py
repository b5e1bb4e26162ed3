"""What outdoor scenes share: the light of the day, a sky, land and things that stand on it or fly over it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from m3ddm_jax.scenes import sprites, textures
from m3ddm_jax.scenes.layers import Layer, Mover, Part, Path, smooth_path


class Light(NamedTuple):
    """A time of day: colours of the sky from zenith to horizon, of the sun, and what it multiplies the land by."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    sun: tuple[float, float, float]
    land: tuple[float, float, float]


LIGHTS = (
    Light((0.24, 0.44, 0.72), (0.72, 0.83, 0.91), (1.0, 0.98, 0.92), (1.0, 1.0, 0.96)),
    Light((0.32, 0.55, 0.80), (0.88, 0.90, 0.90), (1.0, 1.0, 0.96), (1.05, 1.02, 0.95)),
    Light((0.35, 0.42, 0.60), (0.97, 0.76, 0.50), (1.0, 0.90, 0.65), (1.05, 0.86, 0.64)),
    Light((0.20, 0.20, 0.40), (0.90, 0.48, 0.40), (1.0, 0.70, 0.45), (0.72, 0.55, 0.60)),
    Light((0.56, 0.60, 0.65), (0.78, 0.80, 0.82), (0.86, 0.87, 0.88), (0.82, 0.85, 0.88)),
    Light((0.04, 0.06, 0.15), (0.17, 0.21, 0.36), (0.85, 0.88, 0.95), (0.30, 0.36, 0.52)),
    Light((0.50, 0.64, 0.78), (0.98, 0.90, 0.80), (1.0, 0.96, 0.85), (0.95, 0.90, 0.84)),
)
MARGIN = 0.3  # how far layers reach beyond the frame, in parts of its side, besides the camera's way
REACH = 0.35  # of a camera that looks at the horizon
HEADROOM = 0.3  # above a skyline, for what stands on it, in parts of the short side


class Outdoors:
    """What outdoor scenes share: the frame, the light, and layers wide enough for the camera's way."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.unit = min(height, width)
        self.light = LIGHTS[rng.choice(len(LIGHTS), p=[0.22, 0.2, 0.18, 0.12, 0.1, 0.06, 0.12])]
        self.horizon = height * rng.uniform(0.38, 0.62)
        self.haze = np.float32(self.light.horizon)

    def extent(self, depth: float) -> tuple[int, float]:
        """Width of a layer at a depth, and where its first column lies."""
        beyond = MARGIN * self.width + depth * REACH * self.unit
        return int(self.width + 2 * beyond), -beyond

    def lit(self, image: np.ndarray, haze: float) -> np.ndarray:
        """Puts an image of the land under the light of the day, and that much into the haze of distance."""
        shaded = np.clip(image * np.float32(self.light.land), 0, 1)
        return shaded + (self.haze - shaded) * np.float32(haze)

    def sky(self) -> list[Part]:
        """A graded sky with sun or moon, and clouds that drift."""
        rng, light = self.rng, self.light
        columns, left = self.extent(0.05)
        top = -MARGIN * self.height
        rows = int(self.horizon - top + 0.1 * self.height)
        down = np.linspace(0, 1, rows, dtype=np.float32)[:, None] ** 1.3
        graded = np.float32(light.zenith) * (1 - down) + np.float32(light.horizon) * down
        sky = np.repeat(graded[:, None], columns, axis=1)
        x, y = rng.uniform(0.2, 0.8) * columns, rng.uniform(0.3, 0.95) * rows
        distance = np.hypot(np.arange(columns) - x, np.arange(rows)[:, None] - y).astype(np.float32) / self.unit
        glow = 0.55 * np.exp(-distance * 4) + np.clip((0.045 - distance) * self.unit * 0.7, 0, 1)
        sky += (np.float32(light.sun) - sky) * np.clip(glow, 0, 1)[..., None]
        cover = textures.noise(rng, rows, columns, (0.35 * self.unit, 0.9 * self.unit), 6, 0.55)
        alpha = np.clip((cover - rng.uniform(0.35, 0.75)) * rng.uniform(2, 5), 0, 0.95)[..., None]
        shade = textures.noise(rng, rows, columns, (0.2 * self.unit, 0.4 * self.unit), 4)[..., None]
        bright = 0.6 * np.float32(light.sun) + 0.4 * np.float32(light.horizon)
        clouds = bright * (0.78 + 0.3 * shade) * (0.35 + 0.65 * float(np.mean(light.horizon)))
        image = np.concatenate([np.clip(clouds, 0, 1) * alpha, alpha], axis=-1)
        return [
            Layer(sky, left, top, 0.03),
            Layer(image, left, top, 0.06, smooth_path(rng, 0.1 * self.unit, 600, 300)),
        ]

    def land(self, depth: float, base: float, tall: float, rough: float, palette, haze: float) -> Layer:
        """A range of hills or mountains: base row, height and width of its shapes, with room for trees above it."""
        columns, left = self.extent(depth)
        line = tall * textures.noise(self.rng, 2, columns, (2, rough * self.unit), 7, 0.5)[0]
        tall += HEADROOM * self.unit
        top = base - tall
        rows = int((1 + MARGIN) * self.height - top)
        surface = textures.noise(self.rng, rows, columns, (0.35 * tall + 4, 0.5 * rough * self.unit), 7, 0.62)
        below = np.arange(rows, dtype=np.float32)[:, None] - (tall - line)
        values = np.clip(0.75 * surface + 0.35 - 0.35 * below / (tall + 1), 0, 1)
        image = textures.ramp(values, palette) * textures.relief(surface, 3.0)
        alpha = np.clip(below, 0, 1)[..., None].astype(np.float32)
        fade = haze + 0.25 * haze * np.clip(below / (rows + 1), 0, 1)[..., None]
        return Layer(
            np.concatenate([self.lit(image, fade) * alpha, alpha], axis=-1).astype(np.float32), left, top, depth
        )

    def stand(
        self, layer: Layer, kinds: tuple[Callable, ...], count: int, low: float, high: float, haze: float
    ) -> None:
        """Stands sprites of `kinds` on a layer's skyline and slopes, far ones first, low..high short sides tall."""
        alpha = layer.image[..., 3]
        skyline = np.argmax(alpha > 0.5, axis=0)
        places = sorted((self.rng.uniform() ** 2, self.rng.integers(alpha.shape[1])) for _ in range(count))
        for slope, column in places:
            size = int(self.unit * self.rng.uniform(low, high) * (0.7 + 0.6 * slope))
            if size < 4:
                continue
            sprite = kinds[self.rng.integers(len(kinds))](self.rng, size)
            sprite[..., :3] = self.lit(sprite[..., :3], 0.0) * (1 - haze) + self.haze * haze * sprite[..., 3:]
            foot = int(skyline[column] + slope * 0.8 * (alpha.shape[0] - skyline[column]) + 2)
            paste(layer.image, sprite, foot - sprite.shape[0], int(column - sprite.shape[1] / 2))

    def mover(self, sprite: np.ndarray, x: Path, y: Path, depth: float, **motion: Path) -> Mover:
        """A sprite under the light of the day on a path."""
        sprite[..., :3] = np.minimum(self.lit(sprite[..., :3], 0.0), sprite[..., 3:])
        return Mover(sprite, x, y, depth=depth, **motion)

    def across(self, row: float, slow: float = 260.0) -> tuple[Path, Path]:
        """A path from side to side, in and out of the frame, at about a row."""
        x = smooth_path(self.rng, self.rng.uniform(0.4, 0.9) * self.width, slow, 0.45 * slow)
        return offset(x, self.width / 2), offset(smooth_path(self.rng, 0.01 * self.height), row)

    def flying(self) -> list[Part]:
        """Some birds or balloons in the sky, or nothing."""
        rng, unit = self.rng, self.unit
        kind = rng.choice(["birds", "balloons", "nothing"], p=[0.35, 0.35, 0.3])
        parts: list[Part] = []
        for _ in range(0 if kind == "nothing" else rng.integers(1, 5)):
            x, y = self.across(self.horizon * rng.uniform(0.2, 0.75), 500 if kind == "balloons" else 240)
            if kind == "balloons":
                sprite = sprites.balloon(rng, int(unit * rng.uniform(0.1, 0.3)))
                parts.append(self.mover(sprite, x, y, 0.3, angle=smooth_path(rng, 0.04)))
            else:
                sprite = sprites.bird(rng, int(unit * rng.uniform(0.06, 0.14)))
                parts.append(self.mover(sprite, x, y, 0.3, flap=offset(smooth_path(rng, 0.5, 12, 7), -0.3)))
        return parts

    def rolling(self, row: float, depth: float) -> list[Part]:
        """Balls that roll over the land, each with its shadow."""
        rng, parts = self.rng, []
        for _ in range(rng.integers(1, 3)):
            size = int(self.unit * rng.uniform(0.1, 0.22))
            sprite = sprites.ball(rng, size)
            x, _ = self.across(row)
            y = offset(smooth_path(rng, 0.01 * self.height), row)
            parts.append(Mover(sprites.ground_shadow(size), x, offset(y, 0.48 * size), depth=depth))
            parts.append(self.mover(sprite, x, y, depth, angle=rolling(x, size)))
        return parts


def paste(image: np.ndarray, sprite: np.ndarray, top: int, left: int) -> None:
    """Puts a sprite over an image with alpha, in place, as far as it lies inside."""
    rows, columns = image.shape[:2]
    first_row, first_column = max(0, -top), max(0, -left)
    part = sprite[first_row : max(0, rows - top), first_column : max(0, columns - left)]
    if part.size:
        target = image[top + first_row :, left + first_column :][: part.shape[0], : part.shape[1]]
        target *= 1 - part[..., 3:]
        target += part


def rolling(x: Path, size: float) -> Path:
    """Angle of a ball of diameter `size` that rolls along x."""
    return lambda time: 2 * x(time) / size


def offset(path: Path, centre: float) -> Path:
    """Returns the path moved by `centre`."""
    return lambda time: centre + path(time)
