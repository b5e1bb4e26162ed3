"""The kinds of synthetic scene: each builds the parts of one, back to front, and says how its camera may move."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from m3ddm_jax.scenes import sprites, textures
from m3ddm_jax.scenes.layers import Floor, Layer, Mover, Part, Path, smooth_path
from m3ddm_jax.scenes.outdoors import MARGIN, REACH, Outdoors, offset, paste


class World(NamedTuple):
    """Parts of a scene; reach of its camera: x, y in parts of the short side, angle in radians, zoom a logarithm."""

    parts: list[Part]
    reach_x: float
    reach_y: float
    reach_angle: float
    reach_zoom: float


def surface(rng: np.random.Generator, height: int, width: int) -> World:
    """A wall, a floor or a cloth filling the frame, with things of other textures gliding over it."""
    unit, reach = min(height, width), 0.3
    side = int(np.hypot(height, width) * 1.2 + 2 * reach * unit)
    image = textures.any_texture(rng, side, side, unit * 0.6)
    uneven = textures.noise(rng, side, side, 1.5 * side, 2)[..., None]
    parts: list[Part] = [Layer(np.clip(image * (0.7 + 0.5 * uneven), 0, 1), (width - side) / 2, (height - side) / 2)]
    for _ in range(rng.integers(1, 4)):
        parts += gliding_blob(rng, height, width)
    return World(parts, reach, reach, 0.35, 0.18)


def gliding_blob(rng: np.random.Generator, height: int, width: int) -> list[Part]:
    """A smooth shape with its own texture, and its shadow."""
    size = int(min(height, width) * rng.uniform(0.2, 0.5))
    sprite = sprites.blob(rng, size)
    x = offset(smooth_path(rng, 0.6 * width, fastest=60), width / 2)
    y = offset(smooth_path(rng, 0.6 * height, fastest=60), height / 2)
    turn = smooth_path(rng, float(rng.choice([0.0, 1.5])), 300, 120)
    shade, away = sprites.shadow(sprite), 0.05 * size
    return [Mover(shade, offset(x, away), offset(y, away), turn), Mover(sprite, x, y, turn)]


def mountains(rng: np.random.Generator, height: int, width: int) -> World:
    """Mountains and wooded hills behind one another under a sky, with birds or balloons."""
    out = Outdoors(rng, height, width)
    unit, horizon = out.unit, out.horizon
    parts = out.sky()
    far = (textures.ROCK, textures.SNOW, textures.FOREST, textures.EARTH)
    near = (textures.GRASS, textures.FOREST, textures.AUTUMN, textures.GRASS, textures.SAND)
    count = int(rng.integers(2, 4))
    for number in range(count):
        depth = 0.12 + 0.14 * number
        tall = unit * rng.uniform(0.22, 0.45) * (1 - 0.2 * number)
        base = horizon + 0.03 * height * number
        haze = 0.68 - 0.2 * number
        parts.append(out.land(depth, base, tall, rng.uniform(0.5, 1.2), far[rng.integers(4)], haze))
    parts += out.flying()
    palette = near[rng.integers(len(near))]
    kinds = ((sprites.fir,), (sprites.tree,), (sprites.fir, sprites.tree))[rng.integers(3)]
    for number in range(int(rng.integers(2, 4))):
        depth = 0.5 + 0.2 * number
        base = horizon + (0.1 + 0.16 * number) * height
        layer = out.land(depth, base, 0.14 * unit, rng.uniform(0.7, 1.5), palette, 0.22 - 0.1 * number)
        size = 0.05 + 0.06 * number
        out.stand(layer, kinds, int(rng.integers(4, 40)), size, 2 * size, 0.15 - 0.07 * number)
        parts.append(layer)
    if rng.random() < 0.6:
        row = min(height * 0.85, horizon + 0.34 * height)
        parts += out.rolling(row, depth)
    return World(parts, REACH, 0.1, 0.05, 0.12)


def sea(rng: np.random.Generator, height: int, width: int) -> World:
    """Open water with waves under a sky, islands at the horizon and boats."""
    out = Outdoors(rng, height, width)
    unit, light = out.unit, out.light
    parts = out.sky()
    for depth in (0.08, 0.2)[: rng.integers(0, 3)]:
        palette = (textures.FOREST, textures.ROCK, textures.SAND)[rng.integers(3)]
        parts.append(out.land(depth, out.horizon + 0.01 * height, 0.2 * unit, 1.0, palette, 0.55 - depth))
    side = int(1.4 * np.hypot(height, width))
    waves = textures.noise(rng, side, side, (0.05 * unit, 0.22 * unit), 5, 0.6)
    deep = 0.45 * np.float32(textures.WATER[1]) + 0.3 * np.float32(light.zenith)
    water = textures.ramp(waves**1.5, (deep * 0.6, deep, 0.5 * deep + 0.45 * out.haze, out.haze * 1.05))
    water = np.clip(water * np.float32(light.land), 0, 1)
    ripple = smooth_path(rng, 0.04 * unit, 40, 24)
    parts.append(Floor(water, out.horizon, 1.15 * height, width / 2, out.haze * 0.8, ripple, lambda time: 0.6 * time))
    for _ in range(rng.integers(1, 4)):
        depth = rng.uniform(0.15, 0.75)
        row = out.horizon + depth * (1.0 * height - out.horizon)
        size = int(unit * (0.06 + 0.4 * depth))
        x, _ = out.across(row, 500)
        sprite = sprites.boat(rng, size)
        y = offset(smooth_path(rng, 0.02 * size, 60, 30), row - 0.4 * sprite.shape[0])
        parts.append(out.mover(sprite, x, y, depth, angle=smooth_path(rng, 0.05, 70, 40)))
    parts += out.flying()
    return World(parts, REACH, 0.08, 0.05, 0.1)


def street(rng: np.random.Generator, height: int, width: int) -> World:
    """Rows of houses behind one another, a pavement and a road with cars."""
    out = Outdoors(rng, height, width)
    unit = out.unit
    out.horizon = height * rng.uniform(0.5, 0.62)
    parts = out.sky()
    night = float(np.mean(out.light.land)) < 0.6
    rows = [(0.15, 0.55, 0.62), (0.35, 0.5, 0.35), (0.7, 0.42, 0.1)][rng.integers(0, 2) :]
    for depth, tall, haze in rows:
        columns, left = out.extent(depth)
        image = sprites.houses(rng, int(1.35 * tall * height + 0.3 * unit), columns, unit * (0.1 + 0.25 * depth), night)
        image[..., :3] = out.lit(image[..., :3], 0) * (1 - haze) + out.haze * haze * image[..., 3:]
        foot = out.horizon + depth * 0.26 * height
        parts.append(Layer(image, left, foot - image.shape[0], depth))
    near = 1.1 * height
    side = int(1.4 * np.hypot(height, width))
    asphalt = textures.ramp(textures.noise(rng, side, side, 0.2 * unit, 7, 0.8) * 0.25 + 0.3, textures.ROCK)
    parts.append(Floor(out.lit(asphalt, 0.05), out.horizon + 0.1 * height, near, width / 2, out.haze * 0.55))
    for depth in sorted(rng.uniform(0.72, 1.0, rng.integers(1, 4))):
        size = int(unit * rng.uniform(0.32, 0.45) * depth)
        row = out.horizon + (0.12 + 0.9 * (depth - 0.65)) * height
        x, y = out.across(row, 300)
        sprite = sprites.car(rng, size)
        parts.append(Mover(sprites.ground_shadow(size), x, offset(y, 0.5 * sprite.shape[0]), depth=depth))
        parts.append(out.mover(sprite, x, y, depth))
    return World(parts, REACH, 0.08, 0.04, 0.12)


def room(rng: np.random.Generator, height: int, width: int) -> World:
    """A wall with pictures, a floor in perspective, furniture, and balls that roll."""
    unit = min(height, width)
    out = Outdoors(rng, height, width)
    foot = height * rng.uniform(0.55, 0.75)
    columns, left = out.extent(0.6)
    top = -MARGIN * height
    rows = int(foot - top)
    paper = (textures.bricks, textures.stripes, textures.ground, textures.marble)[rng.choice(4, p=[0.3, 0.3, 0.3, 0.1])]
    wall = np.clip(paper(rng, rows, columns, unit * 0.6), 0, 1) * 0.5 + 0.4 * np.float32(
        textures.random_palette(rng)[3]
    )
    lamp = np.hypot(np.arange(columns) - rng.uniform(0, columns), 0.7 * np.arange(rows)[:, None]).astype(np.float32)
    wall *= (1.15 - 0.35 * lamp / (columns / 2 + unit))[..., None]
    wall[-max(2, int(0.04 * unit)) :] = np.float32(textures.random_palette(rng)[2])
    wall = np.concatenate([np.clip(wall, 0, 1), np.ones((rows, columns, 1), np.float32)], axis=-1)
    for _ in range(rng.integers(2, 7)):
        size = int(unit * rng.uniform(0.15, 0.4))
        picture = sprites.picture(rng, size)
        at = int(rng.uniform(0.3, 0.9) * (rows - size))
        column = int(rng.uniform(0, columns))
        paste(wall, sprites.shadow(picture), at + size // 25 + 1, column + size // 25 + 1)
        paste(wall, picture, at, column)
    wall = np.concatenate([wall, np.zeros((1, columns, 4), np.float32)])  # what lies beyond it is no wall
    side = int(1.4 * np.hypot(height, width))
    boards = (textures.bricks, textures.checks, textures.stripes, textures.marble)[
        rng.choice(4, p=[0.35, 0.3, 0.2, 0.15])
    ]
    floor = np.clip(boards(rng, side, side, unit * 0.7), 0, 1)
    near = 1.25 * height
    horizon = foot - 0.6 * (near - foot) / 0.4  # so that the wall, of depth 0.6, stands on the floor
    parts: list[Part] = [
        Floor(floor, horizon, near, width / 2, floor.mean(axis=(0, 1))),
        Layer(wall, left, top, 0.6),
    ]
    for depth in sorted(rng.uniform(0.68, 0.95, rng.integers(1, 5))):
        row = horizon + depth * (near - horizon)
        size = int(unit * rng.uniform(0.2, 0.45))
        if rng.random() < 0.5:
            sprite = sprites.furniture(rng, size)
            x = offset(lambda time: 0.0, rng.uniform(-0.2, 1.2) * width)
            parts.append(Mover(sprites.ground_shadow(int(1.1 * size)), x, offset(lambda time: 0.0, row), depth=depth))
            parts.append(Mover(sprite, x, offset(lambda time: 0.0, row - 0.48 * sprite.shape[0]), depth=depth))
        else:
            parts += out.rolling(row, depth)
    return World(parts, REACH, 0.1, 0.05, 0.12)


def aerial(rng: np.random.Generator, height: int, width: int) -> World:
    """Land from above: water, beaches, woods, rock and snow by height, fields, roads with cars, shadows of clouds."""
    unit, reach = min(height, width), 0.4
    side = int(np.hypot(height, width) * 1.2 + 2 * reach * unit)
    heights = textures.noise(rng, side, side, unit * rng.uniform(0.6, 1.4), 8, 0.55)
    sea_level = rng.uniform(0.0, 0.6)
    palette = (
        *textures.WATER[:3],
        textures.SAND[2],
        textures.GRASS[1],
        textures.FOREST[2],
        textures.ROCK[2],
        textures.SNOW[2],
    )
    places = np.array([0.0, 0.6, 0.97, 1.0, 1.08, 1.35, 1.7, 2.1]) * max(sea_level, 0.02)
    places[3:] = sea_level + (np.array([0.02, 0.06, 0.35, 0.75, 1.0]) * (1 - sea_level))
    grid = np.interp(np.linspace(0, 1, 256), places, np.linspace(0, 1, len(palette))).astype(np.float32)
    image = textures.ramp(grid[(heights * 255).astype(np.int32)], palette)
    dry = (heights > sea_level).astype(np.float32)[..., None]
    fine = textures.noise(rng, side, side, unit * 0.08, 5, 0.75)
    image *= 1 + dry * (textures.relief(heights, 9) - 1) + (0.1 + 0.25 * dry) * (fine[..., None] - 0.5)
    parts: list[Part] = [Layer(np.clip(image, 0, 1), (width - side) / 2, (height - side) / 2)]
    for _ in range(rng.integers(0, 4)):
        size = int(unit * rng.uniform(0.06, 0.14))
        x = smooth_path(rng, 0.6 * width, 400, 150)
        y = smooth_path(rng, 0.6 * height, 400, 150)
        course = heading(x, y)
        sprite = sprites.plane(rng, size)
        x, y = offset(x, width / 2), offset(y, height / 2)
        parts.append(Mover(sprites.shadow(sprite), offset(x, 0.8 * size), offset(y, 1.1 * size), course))
        parts.append(Mover(sprite, x, y, course))
    cover = textures.noise(rng, side, side, 0.8 * unit, 6, 0.55)
    alpha = np.clip((cover - rng.uniform(0.65, 0.95)) * 2.5, 0, 0.7)[..., None]
    left, top = (width - side) / 2, (height - side) / 2
    drift = smooth_path(rng, 0.2 * unit, 500, 200)
    dark = np.concatenate([np.zeros_like(image), 0.5 * alpha], axis=-1)
    parts.insert(1, Layer(dark, left + 0.15 * unit, top + 0.2 * unit, 1.0, drift))
    parts.append(Layer(np.concatenate([np.repeat(alpha, 3, axis=-1), alpha], axis=-1), left, top, 1.25, drift))
    return World(parts, reach, reach, 0.4, 0.15)


def heading(x: Path, y: Path) -> Path:
    """Angle in which a path runs."""
    return lambda time: float(np.arctan2(y(time + 1) - y(time), x(time + 1) - x(time)))


WORLDS: tuple[tuple[Callable[[np.random.Generator, int, int], World], float], ...] = (
    (mountains, 0.22),
    (sea, 0.16),
    (street, 0.18),
    (room, 0.18),
    (aerial, 0.12),
    (surface, 0.14),
)
