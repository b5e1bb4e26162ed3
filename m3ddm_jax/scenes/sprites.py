"""Things that stand or move in synthetic scenes: float32 [h,w,4], their colours multiplied by alpha."""

import cv2
import numpy as np

from m3ddm_jax.scenes import textures

DETAIL = 4  # shapes are drawn this much larger, then averaged down


def cut_out(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Gives [h,w,3] an alpha [h,w] in 0..1."""
    alpha = alpha[..., None].astype(np.float32)
    return np.concatenate([np.clip(image, 0, 1).astype(np.float32) * alpha, alpha], axis=-1)


def filled(height: int, width: int, polygons) -> np.ndarray:
    """Coverage [h,w] in 0..1 of polygons whose points (x, y) are in parts of width and height."""
    large = np.zeros((height * DETAIL, width * DETAIL), np.uint8)
    scale = np.array([width, height]) * DETAIL * 16
    for polygon in polygons:
        cv2.fillPoly(large, [np.round(np.asarray(polygon) * scale).astype(np.int32)], 255, shift=4)
    return cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def ellipse(x: float, y: float, radius_x: float, radius_y: float, points: int = 40) -> np.ndarray:
    """Outline of an ellipse: [points,2]."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=-1)


def shaded(size_y: int, size_x: int, strength: float = 0.5) -> np.ndarray:
    """Light from the upper left: factors [h,w,1] around 1."""
    rows, columns = np.mgrid[:size_y, :size_x].astype(np.float32)
    return np.clip(1.1 - strength * (rows / size_y + columns / size_x - 0.8), 0.3, 1.5)[..., None]


def blob(rng: np.random.Generator, size: int) -> np.ndarray:
    """A smooth random shape with a texture of its own."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.22 / order) * np.cos(order * angles + rng.uniform(0, 7)) for order in range(2, 6))
    radius *= 0.48 / radius.max()
    outline = 0.5 + np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=-1)
    image = textures.any_texture(rng, size, size, size * 0.6) * shaded(size, size, rng.uniform(0, 0.8))
    return cut_out(image, filled(size, size, [outline]))


def ball(rng: np.random.Generator, size: int) -> np.ndarray:
    """A ball with a few coloured panels."""
    rows, columns = (np.mgrid[:size, :size].astype(np.float32) + 0.5) / size * 2 - 1
    distance = np.hypot(rows, columns)
    panel = np.floor((np.arctan2(rows, columns) / (2 * np.pi) + 0.5) * int(rng.integers(2, 7)) * 2).astype(int) % 2
    first, second = (np.float32(textures.random_palette(rng)[2]) for _ in range(2))
    image = np.where(panel[..., None] == 0, first, second) * (1.05 - 0.45 * distance[..., None] ** 3)
    return cut_out(image, np.clip((1 - distance) * size / 2, 0, 1))


def balloon(rng: np.random.Generator, size: int) -> np.ndarray:
    """A hot-air balloon of striped cloth with its basket, half as wide again high."""
    height, width = int(size * 1.4), size
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    x, y = (columns + 0.5) / width * 2 - 1, (rows + 0.5) / height
    bulge = np.sqrt(np.clip(1 - (y / 0.8 * 2 - 1) ** 2, 0.02, 1))
    gore = np.floor(np.arcsin(np.clip(x / bulge, -1, 1)) / np.pi * float(rng.integers(3, 7)) * 2).astype(int) % 2
    colours = [np.float32(textures.random_palette(rng)[index]) for index in (1, 3)]
    image = np.where(gore[..., None] == 0, colours[0], colours[1]) * shaded(height, width, 0.6)
    envelope = [ellipse(0.5, 0.37, 0.49, 0.36), [(0.14, 0.55), (0.86, 0.55), (0.58, 0.84), (0.42, 0.84)]]
    basket = filled(height, width, [[(0.43, 0.89), (0.57, 0.89), (0.55, 0.99), (0.45, 0.99)]])
    sprite = cut_out(image, filled(height, width, envelope))
    wood = cut_out(np.full((height, width, 3), (0.35, 0.22, 0.12), np.float32), basket)
    return sprite * (1 - wood[..., 3:]) + wood


def bird(rng: np.random.Generator, size: int) -> np.ndarray:
    """A bird with its wings spread, dark."""
    height = max(4, size // 2)
    wings = [(0.0, 0.15), (0.28, 0.2), (0.5, 0.62), (0.72, 0.2), (1.0, 0.15), (0.75, 0.45), (0.5, 0.85), (0.25, 0.45)]
    colour = np.float32([0.12, 0.12, 0.14]) * float(rng.uniform(0.5, 2.5))
    return cut_out(np.broadcast_to(colour, (height, size, 3)), filled(height, size, [wings]))


def fir(rng: np.random.Generator, size: int) -> np.ndarray:
    """A conifer, its foot at the lower border."""
    width = max(3, int(size * rng.uniform(0.35, 0.55)))
    tiers = 3 if size < 24 else 5
    polygons = [[(0.46, 0.9), (0.54, 0.9), (0.54, 1.0), (0.46, 1.0)]]
    for tier in range(tiers):
        top, bottom = 0.72 * tier / tiers, 0.94 * (tier + 1.3) / (tiers + 0.3)
        half = 0.14 + 0.36 * (tier + 1) / tiers
        polygons.append([(0.5, top), (0.5 + half, bottom), (0.5, bottom - 0.04), (0.5 - half, bottom)])
    return cut_out(leaves(rng, size, width, textures.FOREST), filled(size, width, polygons))


def tree(rng: np.random.Generator, size: int) -> np.ndarray:
    """A broad-leaved tree, its foot at the lower border."""
    width = max(3, int(size * rng.uniform(0.6, 0.9)))
    crowns = [
        ellipse(0.5 + rng.uniform(-0.2, 0.2), 0.38 + rng.uniform(-0.16, 0.16), rng.uniform(0.18, 0.3), 0.2, 16)
        for _ in range(6)
    ]
    crown = cut_out(
        leaves(
            rng, size, width, (textures.FOREST, textures.GRASS, textures.AUTUMN)[rng.choice(3, p=[0.45, 0.35, 0.2])]
        ),
        filled(size, width, crowns),
    )
    trunk = filled(size, width, [[(0.46, 0.45), (0.54, 0.45), (0.57, 1.0), (0.43, 1.0)]])
    wood = cut_out(np.full((size, width, 3), (0.22, 0.15, 0.10), np.float32), trunk)
    return wood * (1 - crown[..., 3:]) + crown


def boat(rng: np.random.Generator, size: int) -> np.ndarray:
    """A sailing boat; `size` is its height."""
    width = max(4, int(0.8 * size))
    hull = filled(size, width, [[(0.05, 0.8), (0.97, 0.78), (0.8, 0.98), (0.2, 0.98)]])
    sails = filled(size, width, [[(0.52, 0.02), (0.52, 0.74), (0.95, 0.72)], [(0.47, 0.1), (0.47, 0.74), (0.12, 0.74)]])
    mast = filled(size, width, [[(0.48, 0.0), (0.51, 0.0), (0.51, 0.82), (0.48, 0.82)]])
    cloth = np.float32(textures.random_palette(rng)[3]) * 0.3 + 0.65
    sprite = cut_out(np.broadcast_to(np.float32([0.3, 0.22, 0.15]), (size, width, 3)), mast)
    for image, alpha in (
        (cloth * shaded(size, width, 0.4), sails),
        (np.float32(textures.random_palette(rng)[1]), hull),
    ):
        part = cut_out(np.broadcast_to(image, (size, width, 3)), alpha)
        sprite = sprite * (1 - part[..., 3:]) + part
    return sprite


def car(rng: np.random.Generator, size: int) -> np.ndarray:
    """A car from its side; `size` is its length."""
    height = max(4, int(0.42 * size))
    roof = rng.uniform(0.22, 0.38)
    body = [
        [(0.02, 0.5), (roof - 0.05, 0.42), (roof + 0.08, 0.06), (0.72, 0.06), (0.86, 0.42), (0.98, 0.5), (0.98, 0.82)]
        + [(0.02, 0.82)]
    ]
    glass = [
        [(roof + 0.03, 0.4), (roof + 0.12, 0.14), (0.52, 0.14), (0.52, 0.4)],
        [(0.55, 0.4), (0.55, 0.14), (0.69, 0.14), (0.79, 0.4)],
    ]
    wheels = [ellipse(x, 0.82, 0.075, 0.175) for x in (0.2, 0.8)]
    hubs = [ellipse(x, 0.82, 0.035, 0.085) for x in (0.2, 0.8)]
    paint = np.float32(textures.random_palette(rng)[2]) * shaded(height, size, 0.5)
    sprite = np.zeros((height, size, 4), np.float32)
    for image, shape in (
        (paint, body),
        (np.float32([0.10, 0.13, 0.17]) * (1.8 - shaded(height, size, 0.8)), glass),
        (np.float32([0.05, 0.05, 0.06]), wheels),
        (np.float32([0.5, 0.5, 0.52]), hubs),
    ):
        part = cut_out(np.broadcast_to(image, (height, size, 3)), filled(height, size, shape))
        sprite = sprite * (1 - part[..., 3:]) + part
    return sprite


def plane(rng: np.random.Generator, size: int) -> np.ndarray:
    """A small aeroplane from above, flying to the right."""
    parts = [
        ellipse(0.52, 0.5, 0.46, 0.07),
        [(0.42, 0.5), (0.6, 0.5), (0.5, 0.02), (0.4, 0.02)],
        [(0.42, 0.5), (0.6, 0.5), (0.5, 0.98), (0.4, 0.98)],
        [(0.06, 0.5), (0.18, 0.5), (0.12, 0.3), (0.04, 0.3)],
        [(0.06, 0.5), (0.18, 0.5), (0.12, 0.7), (0.04, 0.7)],
    ]
    colour = 0.55 + 0.45 * np.float32(textures.random_palette(rng)[3])
    return cut_out(colour * shaded(size, size, 0.3), filled(size, size, parts))


def picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A framed picture; `size` is its height."""
    width = int(size * rng.uniform(0.7, 1.5))
    border = max(1, int(0.07 * size))
    image = np.empty((size, width, 3), np.float32)
    image[:] = np.float32(textures.random_palette(rng)[rng.integers(4)])
    image *= shaded(size, width, 0.5)
    inside = (size - 2 * border, width - 2 * border)
    if min(inside) > 2:
        image[border:-border, border:-border] = textures.any_texture(rng, *inside, size * 0.7)
    return cut_out(image, np.ones((size, width), np.float32))


def furniture(rng: np.random.Generator, size: int) -> np.ndarray:
    """A chest or a shelf; `size` is its height."""
    width = int(size * rng.uniform(0.6, 1.6))
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    wood = np.clip(textures.marble(rng, size, width, size * 0.5, textures.EARTH), 0, 1) * shaded(size, width, 0.4)
    y, x = np.mgrid[:size, :width].astype(np.float32)
    edge = np.minimum(
        np.abs((y / size * rows + 0.5) % 1 - 0.5) * size / rows,
        np.abs((x / width * columns + 0.5) % 1 - 0.5) * width / columns,
    )
    tint = 0.4 + 0.6 * np.float32(textures.random_palette(rng)[3])
    return cut_out(wood * tint * np.clip(0.45 + edge[..., None] * 0.4, 0, 1), np.ones((size, width), np.float32))


def houses(rng: np.random.Generator, height: int, columns: int, unit: float, night: bool) -> np.ndarray:
    """A row of house fronts with windows, `unit` about as wide as one: [height,columns,4], their foot at the bottom."""
    image = np.zeros((height, columns, 4), np.float32)
    left = -int(rng.uniform(0, unit))
    while left < columns:
        width, tall = int(unit * rng.uniform(0.8, 1.8)) + 3, int(height * rng.uniform(0.35, 0.95))
        wall = np.float32(textures.random_palette(rng)[2]) * 0.5 + 0.3 * np.float32(textures.EARTH[3])
        front = np.empty((tall, width, 3), np.float32)
        front[:] = wall * float(rng.uniform(0.6, 1.2))
        front *= 0.8 + 0.4 * textures.noise(rng, tall, width, unit, 5, 0.6)[..., None]
        floor, bay = unit * rng.uniform(0.18, 0.3), unit * rng.uniform(0.15, 0.3)
        y, x = np.mgrid[:tall, :width].astype(np.float32)
        row, column = y / floor, x / bay
        pane_y, pane_x = rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.85)
        inside = np.minimum((pane_y / 2 - np.abs(row % 1 - 0.5)) * floor, (pane_x / 2 - np.abs(column % 1 - 0.5)) * bay)
        alpha = np.clip(inside + 0.5, 0, 1)[..., None]
        lit = rng.random((97, 89), np.float32)[row.astype(int) % 97, column.astype(int) % 89][..., None]
        warm, cold = np.float32([3.0, 2.2, 1.1]), np.float32([0.16, 0.20, 0.26])
        glass = np.where(lit < (0.4 if night else 0.0), warm, cold * (0.6 + 1.6 * lit))
        front += (glass - front) * alpha
        front[: max(1, int(0.03 * tall))] *= 0.6
        end, start = min(columns, left + width), max(0, left)
        if end > start:  # the first one may lie beyond the edge
            image[height - tall :, start:end, :3] = np.clip(front[:, start - left : end - left], 0, 3)
            image[height - tall :, start:end, 3] = 1
        left += width
    return image


def leaves(rng: np.random.Generator, height: int, width: int, palette) -> np.ndarray:
    """Foliage lit from the upper left: [h,w,3]."""
    clumps = textures.noise(rng, height, width, max(3.0, height / 6), 4, 0.8)
    return textures.ramp(clumps, palette) * shaded(height, width, 0.7)


def shadow(sprite: np.ndarray) -> np.ndarray:
    """The soft shadow that a sprite casts on a wall close behind it."""
    dark = np.zeros_like(sprite)
    dark[..., 3] = 0.5 * sprite[..., 3]
    return cv2.GaussianBlur(dark, (0, 0), max(0.5, 0.04 * sprite.shape[0]))


def ground_shadow(size: int) -> np.ndarray:
    """The soft shadow under a thing `size` wide that stands on the ground."""
    height, width = max(4, size // 3), int(size * 1.2)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot((columns + 0.5) / width * 2 - 1, (rows + 0.5) / height * 2 - 1)
    return cut_out(np.zeros((height, width, 3), np.float32), 0.5 * np.clip(1 - distance, 0, 1))
