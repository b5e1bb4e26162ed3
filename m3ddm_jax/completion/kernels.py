"""Compiled loops of the patch completion: search and vote.

Sources: PatchMatch (Barnes et al., SIGGRAPH 2009); Space-Time Completion of Video (Wexler et al., PAMI 2007).

numba compiles each function on its first call. All of them release the interpreter's lock, so that bands of an image
run on several threads. A band reads other bands' results of the previous sweep only, so that the number of threads does
not change the result.

A field is int32 [h, w, 2]: row and column of the patch centre in the atlas that a target patch copies from. A cost is
float32 [h, w], `NO_TARGET` where no patch is centred.
"""

from typing import NamedTuple

import numba
import numpy as np

RADIUS = 2
SIZE = 2 * RADIUS + 1
NO_TARGET = np.float32(3e38)

_SHIFTS = tuple(np.uint64(bits) for bits in (13, 7, 17, 33))


class Level(NamedTuple):
    """What the loops read at one scale. Rows of images interleave the channels.

    image: float32 [h, 3 w], the estimate, which `vote` changes. certainty: float32 [h, 3 w], weight of each value when
    patches are compared. share: float32 [h, w], one over the sum of the certainties of a patch. layering: float32
    [h, w, 2], cost of a squared row and column passed.
    atlas: float32 [H, 3 W], all sources, one below the other. usable: bool [H, W], centres of patches that may be
    copied. place: float32 [H, W, 2], canvas row and column of each pixel of the atlas. source: int32 [H], the source of
    each row of the atlas. corner: int32 [n, 2], row and column in the atlas where the canvas of each source begins.
    """

    image: np.ndarray
    certainty: np.ndarray
    share: np.ndarray
    layering: np.ndarray
    atlas: np.ndarray
    usable: np.ndarray
    place: np.ndarray
    source: np.ndarray
    corner: np.ndarray


def _compiled(function):
    """The function, compiled on its first call. The program is cached on disk where a folder can be written."""
    # Sums may be reordered; infinities stay what they are.
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


@_compiled
def _draw(state, stop):
    """A random integer in [0, stop). state: uint64 [1], not 0, is advanced (xorshift64, Marsaglia 2003)."""
    x = state[0]
    x ^= x << _SHIFTS[0]
    x ^= x >> _SHIFTS[1]
    x ^= x << _SHIFTS[2]
    state[0] = x
    return np.int64(x >> _SHIFTS[3]) % stop


@_compiled
def _compare(level, row, column, source_row, source_column, limit):
    """Energy of a patch that copies from a place; `limit` or more where it is no less than that.

    The mean squared difference of the values, weighted by certainty, and what the rows and columns passed cost.
    """
    image, certainty, atlas = level.image, level.certainty, level.atlas
    down = level.place[source_row, source_column, 0] - np.float32(row)
    right = level.place[source_row, source_column, 1] - np.float32(column)
    moved = level.layering[row, column, 0] * down * down + level.layering[row, column, 1] * right * right
    if moved >= limit:
        return limit
    share = level.share[row, column]
    bound = (limit - moved) / share
    first, source_first = 3 * (column - RADIUS), 3 * (source_column - RADIUS)
    total = np.float32(0)
    for i in range(-RADIUS, RADIUS + 1):
        for k in range(3 * SIZE):
            difference = image[row + i, first + k] - atlas[source_row + i, source_first + k]
            total += certainty[row + i, first + k] * difference * difference
        if total >= bound:
            return limit
    return moved + total * share


@_compiled
def evaluate(level, targets, field, cost):
    """Writes the costs of the targets, int32 [n, 2], as the image and the field are now."""
    for n in range(len(targets)):
        row, column = np.int64(targets[n, 0]), np.int64(targets[n, 1])
        source_row, source_column = np.int64(field[row, column, 0]), np.int64(field[row, column, 1])
        cost[row, column] = _compare(level, row, column, source_row, source_column, NO_TARGET)


@_compiled
def exhaust(level, targets, centres, field, cost):
    """Writes the best of the centres, int32 [m, 2] in the atlas, and its cost for each of the targets, int32 [n, 2]."""
    for n in range(len(targets)):
        row, column = np.int64(targets[n, 0]), np.int64(targets[n, 1])
        best, found = NO_TARGET, 0
        for m in range(len(centres)):
            value = _compare(level, row, column, np.int64(centres[m, 0]), np.int64(centres[m, 1]), best)
            if value < best:
                best, found = value, m
        field[row, column, 0], field[row, column, 1] = centres[found, 0], centres[found, 1]
        cost[row, column] = best


@_compiled
def search(level, targets, before, field, cost, widest, step, state):
    """One sweep of PatchMatch over a band: what neighbours found, then random places ever nearer.

    targets: int32 [n, 2], the band's, whole rows in reading order. before: the field before this sweep, for neighbours
    in other bands. field, cost: are changed at the targets. widest: pixels of the first random jump. step: -1 forward
    sweep, 1 backward. state: random state, is advanced.
    """
    count = len(targets)
    top, bottom = targets[0, 0], targets[count - 1, 0]
    height, width = level.usable.shape
    for n in range(count):
        index = n if step < 0 else count - 1 - n
        row, column = np.int64(targets[index, 0]), np.int64(targets[index, 1])
        best_row, best_column = np.int64(field[row, column, 0]), np.int64(field[row, column, 1])
        best = cost[row, column]
        reach = np.int64(widest)
        trial = 0
        while trial < 2 or reach >= 1:
            if trial < 2:
                near_row, near_column = row + step * (1 - trial), column + step * trial
                trial += 1
                if not (0 <= near_row < cost.shape[0] and 0 <= near_column < cost.shape[1]):
                    continue
                if cost[near_row, near_column] == NO_TARGET:
                    continue
                found = field if top <= near_row <= bottom else before
                source_row = found[near_row, near_column, 0] + row - near_row
                source_column = found[near_row, near_column, 1] + column - near_column
            else:
                source_row = best_row + _draw(state, 2 * reach + 1) - reach
                source_column = best_column + _draw(state, 2 * reach + 1) - reach
                if len(level.corner) > 1:
                    old, new = level.source[best_row], _draw(state, len(level.corner))
                    source_row += level.corner[new, 0] - level.corner[old, 0]
                    source_column += level.corner[new, 1] - level.corner[old, 1]
                reach //= 2
            if not (0 <= source_row < height and 0 <= source_column < width):
                continue
            if level.usable[source_row, source_column]:
                value = _compare(level, row, column, source_row, source_column, best)
                if value < best:
                    best_row, best_column, best = source_row, source_column, value
        field[row, column, 0], field[row, column, 1], cost[row, column] = best_row, best_column, best


@_compiled
def vote(level, unknown, field, weight):
    """Writes the unknown pixels, int32 [n, 2], as weighted means of what the patches over them propose.

    weight: float32 [h, w] of the target patches, 0 where there is none.
    """
    height, width = weight.shape
    for n in range(len(unknown)):
        row, column = unknown[n, 0], unknown[n, 1]
        red = green = blue = total = np.float32(0)
        for i in range(max(-RADIUS, -row), min(RADIUS, height - 1 - row) + 1):
            for j in range(max(-RADIUS, -column), min(RADIUS, width - 1 - column) + 1):
                share = weight[row + i, column + j]
                if share > 0:
                    source_row = field[row + i, column + j, 0] - i
                    source_column = 3 * (field[row + i, column + j, 1] - j)
                    red += share * level.atlas[source_row, source_column]
                    green += share * level.atlas[source_row, source_column + 1]
                    blue += share * level.atlas[source_row, source_column + 2]
                    total += share
        level.image[row, 3 * column] = red / total
        level.image[row, 3 * column + 1] = green / total
        level.image[row, 3 * column + 2] = blue / total


@_compiled
def relax(values, counted, free, sweeps, factor):
    """Brings free pixels, int32 [n, 2], near the mean of their neighbours, by successive over-relaxation.

    values: float32 [h, 3 w], changed at the free pixels. counted: bool [h, w], pixels that count as neighbours. factor:
    float32 in 1..2, relaxation factor of all sweeps but the last, which uses 1.
    """
    height, width = counted.shape
    for sweep in range(sweeps):
        step = factor if sweep < sweeps - 1 else np.float32(1)
        for n in range(len(free)):
            index = n if sweep % 2 == 0 else len(free) - 1 - n
            row, column = np.int64(free[index, 0]), np.int64(free[index, 1])
            red = green = blue = total = np.float32(0)
            for side in range(4):
                near_row, near_column = row + (side == 0) - (side == 1), column + (side == 2) - (side == 3)
                if 0 <= near_row < height and 0 <= near_column < width and counted[near_row, near_column]:
                    red += values[near_row, 3 * near_column]
                    green += values[near_row, 3 * near_column + 1]
                    blue += values[near_row, 3 * near_column + 2]
                    total += np.float32(1)
            if total > 0:
                values[row, 3 * column] += step * (red / total - values[row, 3 * column])
                values[row, 3 * column + 1] += step * (green / total - values[row, 3 * column + 1])
                values[row, 3 * column + 2] += step * (blue / total - values[row, 3 * column + 2])
