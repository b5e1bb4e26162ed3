"""Scales of an image with unknown pixels, and of the sources that its patches are copied from."""

from typing import NamedTuple

import cv2
import numpy as np

from m3ddm_jax.completion.distance import nearest
from m3ddm_jax.completion.kernels import RADIUS, SIZE

_PATCH = np.ones((SIZE, SIZE), np.uint8)


class Source(NamedTuple):
    """An image to copy from.

    image: float32 [h, w, 3]. allowed: bool [h, w], pixels that may be copied. row, column: of its first pixel in the
    canvas, which decide the rows and columns that its patches belong to.
    """

    image: np.ndarray
    allowed: np.ndarray
    row: float = 0
    column: float = 0


class Atlas(NamedTuple):
    """Sources, one below the other; arrays as in `kernels.Level`. tops: the first row of each, and the end."""

    atlas: np.ndarray
    usable: np.ndarray
    place: np.ndarray
    source: np.ndarray
    corner: np.ndarray
    tops: np.ndarray


def reduce_known(image: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Halves an image [h, w, 3]: means of the known pixels, bool [h, w]. A pixel is known if any of its four is."""
    blocks = _blocks(known).astype(np.float32)
    count = blocks.sum((1, 3))
    total = (_blocks(image) * blocks[..., None]).sum((1, 3))
    return total / np.maximum(count, 1)[..., None], count > 0


def reduce_source(source: Source) -> Source:
    """Halves a source: a pixel may be copied if all of its four may."""
    image, _ = reduce_known(source.image, source.allowed)
    return Source(image, _blocks(source.allowed).all((1, 3)), source.row / 2, source.column / 2)


def _blocks(image: np.ndarray) -> np.ndarray:
    """Blocks of 2x2 pixels of [h, w, ...], padded by zeros: [h/2, 2, w/2, 2, ...]."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, height % 2), (0, width % 2), *[(0, 0)] * (image.ndim - 2)))
    return padded.reshape(-(-height // 2), 2, -(-width // 2), 2, *image.shape[2:])


def usable_centres(allowed: np.ndarray) -> np.ndarray:
    """Centres of patches all of whose pixels may be copied, bool [h, w]."""
    eroded = cv2.erode(allowed.astype(np.uint8), _PATCH, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return eroded.astype(bool)


def target_centres(unknown: np.ndarray) -> np.ndarray:
    """Centres of the whole patches that hold an unknown pixel, bool [h, w]."""
    targets = np.zeros(unknown.shape, bool)
    inner = np.s_[RADIUS : unknown.shape[0] - RADIUS, RADIUS : unknown.shape[1] - RADIUS]
    targets[inner] = cv2.dilate(unknown.astype(np.uint8), _PATCH)[inner]
    return targets


def places_of(there: np.ndarray) -> np.ndarray:
    """Rows and columns of the true pixels of bool [h, w] in reading order, int32 [n, 2]."""
    return np.ascontiguousarray(np.argwhere(there), np.int32)


def stack(sources: list[Source]) -> Atlas:
    """The atlas of the sources of one scale."""
    tops = np.cumsum([0, *(len(source.image) for source in sources)])
    width = max(source.image.shape[1] for source in sources)
    atlas = np.zeros((tops[-1], width, 3), np.float32)
    usable = np.zeros(atlas.shape[:2], bool)
    place = np.zeros((*usable.shape, 2), np.float32)
    for source, top in zip(sources, tops, strict=False):
        rows, columns = source.allowed.shape
        there = np.s_[top : top + rows, :columns]
        atlas[there] = source.image
        usable[there] = usable_centres(source.allowed)
        place[there] = np.stack(np.mgrid[:rows, :columns], -1) + np.array([source.row, source.column])
    corner = np.array([(top - round(s.row), -round(s.column)) for s, top in zip(sources, tops, strict=False)], np.int32)
    source = np.repeat(np.arange(len(sources), dtype=np.int32), np.diff(tops))
    return Atlas(atlas.reshape(tops[-1], -1), usable, place, source, corner, tops)


def enlarge(
    field: np.ndarray, coarse_targets: np.ndarray, coarse: Atlas, fine: Atlas, targets: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """What targets of twice as fine a scale copy from, int32 [n, 2], and the rows and columns of their coarse targets.

    field: int32 [h, w, 2], of the coarse scale. coarse_targets: bool [h, w]. targets: int32 [n, 2], of the fine scale.
    """
    near_rows, near_columns, _ = nearest(coarse_targets)
    under = tuple(targets.T // 2)
    parents = near_rows[under], near_columns[under]
    source_rows, source_columns = field[parents].T
    source = coarse.source[source_rows]
    rows = 2 * (source_rows - coarse.tops[source]) + targets[:, 0] - 2 * parents[0]
    rows = np.clip(rows + fine.tops[source], fine.tops[source], fine.tops[source + 1] - 1)
    columns = np.clip(2 * source_columns + targets[:, 1] - 2 * parents[1], 0, fine.usable.shape[1] - 1)
    usable_rows, usable_columns, _ = nearest(fine.usable)
    places = np.stack([usable_rows[rows, columns], usable_columns[rows, columns]], -1)
    return places.astype(np.int32), parents


def layering(known: np.ndarray, near_rows: np.ndarray, near_columns: np.ndarray, strength: float) -> np.ndarray:
    """Cost of a squared row and column passed, float32 [h, w, 2], 0 where known.

    It is that of rows where the nearest known pixel lies to the side, of columns where it lies above or below.
    """
    rows, columns = np.mgrid[: known.shape[0], : known.shape[1]]
    squared = np.stack([near_columns - columns, near_rows - rows], -1).astype(np.float32) ** 2
    share = squared / np.maximum(squared.sum(-1, keepdims=True), 1)
    return share * np.float32(strength / min(known.shape) ** 2)
