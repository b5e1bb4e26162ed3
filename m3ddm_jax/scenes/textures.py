"""Procedural textures: float32 [h,w,3] in 0..1, sRGB, made from a numpy Generator.

Natural surfaces have spectra near 1/f and few hues, so nearly all of these are sums of octaves of noise run through
short palettes.
"""

import colorsys
from collections.abc import Callable, Sequence

import cv2
import numpy as np

Colour = Sequence[float]

GRASS = ((0.13, 0.20, 0.07), (0.26, 0.36, 0.12), (0.42, 0.48, 0.20), (0.58, 0.58, 0.32))
FOREST = ((0.05, 0.09, 0.05), (0.12, 0.20, 0.09), (0.22, 0.33, 0.13), (0.40, 0.47, 0.22))
AUTUMN = ((0.20, 0.10, 0.05), (0.48, 0.22, 0.08), (0.72, 0.42, 0.13), (0.85, 0.66, 0.28))
SAND = ((0.50, 0.38, 0.26), (0.70, 0.56, 0.39), (0.82, 0.70, 0.52), (0.92, 0.84, 0.69))
ROCK = ((0.16, 0.15, 0.15), (0.34, 0.32, 0.30), (0.52, 0.49, 0.45), (0.72, 0.69, 0.65))
SNOW = ((0.55, 0.62, 0.72), (0.78, 0.83, 0.89), (0.90, 0.93, 0.96), (0.98, 0.98, 0.98))
EARTH = ((0.15, 0.09, 0.06), (0.31, 0.21, 0.14), (0.47, 0.34, 0.23), (0.62, 0.49, 0.36))
WATER = ((0.03, 0.12, 0.18), (0.07, 0.24, 0.32), (0.16, 0.38, 0.45), (0.45, 0.63, 0.66))
LAND = (GRASS, FOREST, AUTUMN, SAND, ROCK, SNOW, EARTH)


def noise(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 6, gain: float = 0.5
) -> np.ndarray:
    """Makes float32 [h,w] in 0..1: octaves of smooth noise from `cell` pixels down, each `gain` times the last."""
    total = np.zeros((height, width), np.float32)
    stretch = cell if isinstance(cell, tuple) else (cell, cell)
    for octave in range(octaves):
        rows, columns = (
            max(2, round(n * 2**octave / size) + 1) for n, size in zip((height, width), stretch, strict=True)
        )
        if rows > height and columns > width:
            break
        grid = rng.standard_normal((min(rows, height), min(columns, width)), np.float32)
        total += gain**octave * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return normalise(total)


def normalise(values: np.ndarray) -> np.ndarray:
    """Squashes values smoothly into 0..1, their mean to 0.5 and two standard deviations to about 0.05 and 0.95."""
    return 0.5 + 0.5 * np.tanh((values - values.mean()) / (1.4 * values.std() + 1e-6))


def ramp(values: np.ndarray, palette: Sequence[Colour]) -> np.ndarray:
    """Looks values in 0..1 up in a palette of evenly spaced colours: [h,w] -> [h,w,3]."""
    places = np.linspace(0, 1, len(palette))
    grid = np.linspace(0, 1, 512)
    table = np.stack([np.interp(grid, places, channel) for channel in np.array(palette).T], axis=-1).astype(np.float32)
    return table[(values * 511).astype(np.int32)]


def random_palette(rng: np.random.Generator, colours: int = 4) -> tuple[Colour, ...]:
    """Draws a palette from dark to light: one hue, sometimes drifting to a second, of moderate saturation."""
    hue, drift = rng.uniform(), rng.choice([0.03, 0.08, 0.25], p=[0.5, 0.35, 0.15]) * rng.choice([-1, 1])
    saturation = rng.beta(2, 3)
    low, high = sorted(rng.uniform([0.05, 0.5], [0.4, 1.0]))
    steps = np.linspace(0, 1, colours)
    return tuple(
        colorsys.hsv_to_rgb((hue + drift * step) % 1, saturation * (1 - 0.5 * step), low + (high - low) * step)
        for step in steps
    )


def any_palette(rng: np.random.Generator) -> tuple[Colour, ...]:
    """Draws a land palette or a random one."""
    return LAND[rng.integers(len(LAND))] if rng.random() < 0.4 else random_palette(rng)


def relief(values: np.ndarray, strength: float) -> np.ndarray:
    """Shades a height map lit from the upper left: [h,w] in 0..1 -> factors [h,w,1] around 1."""
    slope = cv2.filter2D(values, -1, np.diag(np.float32([-1, 0, 0, 0, 1])))
    return np.clip(1 + strength * slope, 0.45, 1.6)[..., None]


def ground(rng, height, width, scale, palette=None) -> np.ndarray:
    """Soil, moss, plaster: noise through a palette, with relief."""
    values = noise(rng, height, width, scale * rng.uniform(0.6, 2.5), 7, rng.uniform(0.5, 0.68))
    return ramp(values, palette or any_palette(rng)) * relief(values, rng.uniform(0, 6))


def marble(rng, height, width, scale, palette=None) -> np.ndarray:
    """Marble, wood, flowing rock: bands bent by noise."""
    cell = scale * rng.uniform(0.8, 2)
    bend = noise(rng, height, width, cell, 5) * rng.uniform(0.5, 3)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    bands = np.sin(
        2 * np.pi * ((columns * float(np.cos(angle)) + rows * float(np.sin(angle))) / cell * rng.uniform(0.4, 2) + bend)
    )
    fine = noise(rng, height, width, scale / 6, 4, 0.7)
    return ramp(np.clip(0.5 + 0.38 * bands + 0.35 * (fine - 0.5), 0, 1), palette or any_palette(rng))


def bricks(rng, height, width, scale, palette=None) -> np.ndarray:
    """Brickwork, tiles, planks: a grid of blocks with joints, rows shifted, each block of its own shade."""
    block_height = scale * rng.uniform(0.12, 0.4)
    block_width = block_height * float(rng.choice([1.0, 2.0, 2.5, 5.0]))
    shift = float(rng.choice([0.0, 0.5, 0.33]))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    row = rows / block_height
    column = columns / block_width + shift * np.floor(row)
    shades = rng.random((64, 64), np.float32)[np.floor(row).astype(int) % 64, np.floor(column).astype(int) % 64]
    joint = max(1.0, block_height * rng.uniform(0.04, 0.12))
    edge = np.minimum(
        np.minimum(row % 1, 1 - row % 1) * block_height, np.minimum(column % 1, 1 - column % 1) * block_width
    )
    inside = np.clip(edge - joint / 2 + 0.5, 0, 1)[..., None]
    fine = noise(rng, height, width, block_height, 5, 0.7)
    palette = palette or any_palette(rng)
    face = ramp(np.clip(0.25 + 0.45 * shades + 0.5 * (fine - 0.5), 0, 1), palette)
    mortar = np.float32(palette[rng.choice([0, -1])]) * (0.7 + 0.3 * fine[..., None])
    return face * inside + mortar * (1 - inside)


def stripes(rng, height, width, scale, palette=None) -> np.ndarray:
    """Cloth: stripes or plaid of a few colours, with a weave."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = float(rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)]))
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    across = columns * cosine + rows * sine
    along = rows * cosine - columns * sine
    period = scale * rng.uniform(0.25, 0.9)
    profile = cv2.resize(rng.random((1, 6), np.float32), (96, 1), interpolation=cv2.INTER_NEAREST)
    profile = cv2.GaussianBlur(np.tile(profile, (1, 3)), (0, 0), 0.8)[0, 96:192]
    values = profile[(across / period * 96).astype(int) % 96]
    if rng.random() < 0.5:
        values = (values + profile[(along / period * 96).astype(int) % 96]) / 2
    values = np.clip(values + 0.25 * (noise(rng, height, width, scale / 4, 5, 0.75) - 0.5), 0, 1)
    return ramp(values, palette or random_palette(rng))


def checks(rng, height, width, scale, palette=None) -> np.ndarray:
    """A worn chequered floor, antialiased."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    size = scale * rng.uniform(0.2, 0.6)
    waves = np.sin(np.pi * rows / size) * np.sin(np.pi * columns / size)
    sharp = np.clip(waves * size / np.pi / 1.2, -1, 1) * 0.5 + 0.5
    wear = noise(rng, height, width, scale, 6, 0.65)
    dark, light = (np.float32(colour) for colour in ((palette or any_palette(rng))[i] for i in (0, -1)))
    mixed = dark + (light - dark) * sharp[..., None]
    return mixed * (0.75 + 0.4 * wear[..., None])


def cells(rng, height, width, scale, palette=None) -> np.ndarray:
    """Cobbles, pebbles, leaves: the nearest of scattered points, dark between them."""
    size = max(4.0, scale * rng.uniform(0.08, 0.3))
    seeds = np.ones((height, width), np.uint8)
    count = max(4, int(height * width / size**2))
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    shades = rng.random(labels.max() + 1, np.float32)[labels]
    fine = noise(rng, height, width, size, 4, 0.7)
    values = np.clip(0.2 + 0.6 * shades + 0.4 * (fine - 0.5), 0, 1)
    shade = np.clip(1.25 - 0.7 * (distance / size) ** 2, 0.25, 1.25)[..., None]
    return cv2.GaussianBlur(ramp(values, palette or any_palette(rng)) * shade, (0, 0), 0.7)


def foliage(rng, height, width, scale, palette=None) -> np.ndarray:
    """Leaves and grass: sharp clumps of light before dark."""
    upright = (scale * rng.uniform(0.2, 0.5), scale * rng.uniform(0.1, 0.5))
    clumps = noise(rng, height, width, upright, 7, 0.75)
    large = noise(rng, height, width, scale * 2, 4)
    values = np.clip(0.5 + 1.1 * (clumps - 0.5) + 0.7 * (large - 0.5), 0, 1)
    return ramp(values, palette or (GRASS, FOREST, AUTUMN)[rng.integers(3)])


TEXTURES: tuple[Callable[..., np.ndarray], ...] = (ground, marble, bricks, stripes, checks, cells, foliage)


def any_texture(rng: np.random.Generator, height: int, width: int, scale: float) -> np.ndarray:
    """Draws one of TEXTURES: float32 [h,w,3] in 0..1, its features about `scale` pixels large."""
    return np.clip(TEXTURES[rng.integers(len(TEXTURES))](rng, height, width, scale), 0, 1)
