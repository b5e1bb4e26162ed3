"""Images whose differences between neighbours come as near as they can to given ones: sparse least squares.

Conjugate gradients, preconditioned by a multigrid cycle over sums of 2 x 2 cells (Braess, Towards Algebraic Multigrid
for Elliptic Problems of Second Order, 1995), so that wide regions cost hardly more iterations than narrow ones.
jax.scipy.sparse.linalg.cg sees all images and channels as one system; it takes 2 % longer on wide borders and 14 % on
holes (4 images of 426x240, one core).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat

TOLERANCE = 1e-6
"""Of the residual, to where it began: as near as float32 can be relied on to come."""

_MAX_ITERATIONS = 1000  # for a system that rounding keeps from converging
_DAMPING = 0.8  # of Jacobi's iteration, which is safe below 1
_OVERSHOOT = 1.8  # of a coarser level's correction, which constant cells make too small
_COARSEST = 4  # cells on the shorter side of the coarsest level, at most
_SWEEPS, _COARSEST_SWEEPS = 2, 8  # of Jacobi's iteration, on the way down and up, and on the coarsest level

_ROWS, _COLUMNS = -2, -1  # of the inner layout, [N, C, H, W]: rows of many pixels are what a CPU is fast at


class Edges(NamedTuple):
    """Something about the edge from each pixel to the one on the right, and to the one below: [N, H, W, C] each.

    Those of the last column and of the last row lead nowhere and are not looked at.
    """

    right: jax.Array
    down: jax.Array


class Anchors(NamedTuple):
    """Colours that pixels should be near to: values [N, H, W, C], and how much that counts, not negative,
    [N or 1, H, W, 1]."""

    values: jax.Array
    weights: jax.Array


class _Level(NamedTuple):
    """A symmetric system over unknown cells, [N, 1, H, W] each: what a cell has itself, and its four neighbours.

    All is zero for cells that are not unknown and for neighbours that are not.
    """

    diagonal: jax.Array
    right: jax.Array
    left: jax.Array
    down: jax.Array
    up: jax.Array


def differences(images: jax.Array) -> Edges:
    """From each pixel of images [N, H, W, C] to the one on the right, and to the one below; 0 at the end."""
    right, down = jnp.diff(images, axis=2), jnp.diff(images, axis=1)
    return Edges(jnp.pad(right, ((0, 0), (0, 0), (0, 1), (0, 0))), jnp.pad(down, ((0, 0), (0, 1), (0, 0), (0, 0))))


@jax.jit
def solve(
    images: jax.Array,
    mask: jax.Array,
    gradients: Edges,
    weights: Edges,
    tolerance: float = TOLERANCE,
    anchors: Anchors | None = None,
) -> jax.Array:
    """Images whose pixels under the mask minimize the weighted squares of (difference - gradient) over all edges, and
    with anchors those of (pixel - value) too.

    images: [N, H, W, C]; what is under the mask is not looked at. mask: [N or 1, H, W, 1], 1 = unknown. gradients: the
    differences wanted, [N, H, W, C] each. weights: of the edges, not negative, [N or 1, H, W, 1] each. tolerance: of
    the residual; each power of ten takes some four iterations.
    Returns float32. Where the edges leave a choice, the solution is the one nearest to zero: a pixel without any is 0,
    and pixels that edges tie to each other alone have zero mean. Differentiable in reverse, but for the latter.
    """
    start = jnp.where(mask > 0, 0.0, images.astype(jnp.float32))
    unknown, right, down = (_inner(x).astype(jnp.float32) for x in (mask > 0, *weights))
    right, down = _without_last(right, _COLUMNS), _without_last(down, _ROWS)
    lacking_right, lacking_down = (_inner(g - d) for g, d in zip(gradients, differences(start), strict=True))
    to_right, to_down = right * lacking_right, down * lacking_down
    pull = unknown * (_before(to_right, _COLUMNS) - to_right + _before(to_down, _ROWS) - to_down)
    system = _among_unknown(unknown, right, down)
    if anchors is not None:
        values, held = (_inner(x).astype(jnp.float32) for x in anchors)
        system = system._replace(diagonal=system.diagonal + unknown * held)
        pull += unknown * held * values
    solved = _solve(system, pull, tolerance)
    return start + rearrange(solved, "n c h w -> n h w c")


def _inner(x: jax.Array) -> jax.Array:
    return rearrange(x, "n h w c -> n c h w")


def _after(x: jax.Array, axis: int) -> jax.Array:
    """What the neighbour below or to the right holds; 0 beyond."""
    return jnp.pad(jax.lax.slice_in_dim(x, 1, None, axis=axis), _pad(axis, 0, 1))


def _before(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(jax.lax.slice_in_dim(x, 0, -1, axis=axis), _pad(axis, 1, 0))


def _without_last(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(jax.lax.slice_in_dim(x, 0, -1, axis=axis), _pad(axis, 0, 1))


def _pad(axis: int, before: int, after: int) -> list[tuple[int, int]]:
    return [(before, after) if a == axis else (0, 0) for a in range(-4, 0)]


def _among_unknown(unknown: jax.Array, right: jax.Array, down: jax.Array) -> _Level:
    edges = (right, _before(right, _COLUMNS), down, _before(down, _ROWS))
    neighbours = (
        _after(unknown, _COLUMNS),
        _before(unknown, _COLUMNS),
        _after(unknown, _ROWS),
        _before(unknown, _ROWS),
    )
    return _Level(unknown * sum(edges), *(unknown * e * n for e, n in zip(edges, neighbours, strict=True)))


def _apply(level: _Level, x: jax.Array) -> jax.Array:
    beside = level.right * _after(x, _COLUMNS) + level.left * _before(x, _COLUMNS)
    return level.diagonal * x - beside - level.down * _after(x, _ROWS) - level.up * _before(x, _ROWS)


def _solve(system: _Level, pull: jax.Array, tolerance: jax.Array) -> jax.Array:
    """By components: those that known pixels hold fast, and those that float.

    Of the latter, only iterations without a preconditioner find the solution of zero mean.
    """
    neighbours = system.right + system.left + system.down + system.up
    held = _connected(system.diagonal > neighbours, system)
    fast = jax.tree.map(lambda x: x * held, system)
    levels = jax.lax.stop_gradient(_coarsen(fast))

    def solve_fast(_, pull):
        return _conjugate_gradients(fast, pull, tolerance, lambda residual: _cycle(levels, residual))

    solved = jax.lax.custom_linear_solve(lambda x: _apply(fast, x), held * pull, solve_fast, symmetric=True)
    floating = jax.lax.stop_gradient(jax.tree.map(lambda x: x * ~held, (system, pull)))
    return held * solved + _conjugate_gradients(*floating, tolerance, lambda residual: residual)


def _connected(seeds: jax.Array, system: _Level) -> jax.Array:
    """Everything, bool, that edges of the system lead to from seeds: bool [N, 1, H, W].

    Swept along whole rows and columns, there and back, until nothing is added: hardly ever more than a few times.
    """

    def sweep(reached, edges, axis, back):
        side = reached.shape[axis]
        places = jnp.arange(side).reshape(-1, *[1] * (-1 - axis))
        last = functools.partial(jax.lax.cummax, axis=reached.ndim + axis)
        if back:
            reached, edges = jnp.flip(reached, axis), jnp.flip(edges, axis)
        # A cell is reached from the last seed on the way, if no edge is missing since.
        seed, gap = last(jnp.where(reached, places, -1)), last(jnp.where(edges > 0, -1, places))
        reached = (seed >= gap) & (seed >= 0)
        return jnp.flip(reached, axis) if back else reached

    def step(state):
        before, _ = state
        reached = before
        for edges, axis, back in (
            (system.left, _COLUMNS, False),
            (system.right, _COLUMNS, True),
            (system.up, _ROWS, False),
            (system.down, _ROWS, True),
        ):
            reached = sweep(reached, edges, axis, back)
        return reached, (reached != before).any()

    return jax.lax.while_loop(lambda state: state[1], step, (seeds, jnp.array(True)))[0]


def _conjugate_gradients(
    system: _Level, pull: jax.Array, tolerance: jax.Array, precondition: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Every image and channel by itself, until all have converged."""

    def dot(a, b):
        return reduce(a * b, "n c h w -> n c 1 1", "sum")

    enough = tolerance**2 * dot(pull, pull)

    def unfinished(state):
        _, residual, _, _, count = state
        return (dot(residual, residual) > enough).any() & (count < _MAX_ITERATIONS)

    def step(state):
        x, residual, direction, alignment, count = state
        changed = _apply(system, direction)
        length = jnp.where(dot(residual, residual) > enough, alignment / dot(direction, changed), 0)
        x, residual = x + length * direction, residual - length * changed
        preconditioned = precondition(residual)
        next_alignment = dot(residual, preconditioned)
        turn = jnp.where(alignment > 0, next_alignment / alignment, 0)
        return x, residual, preconditioned + turn * direction, next_alignment, count + 1

    preconditioned = precondition(pull)
    state = (jnp.zeros_like(pull), pull, preconditioned, dot(pull, preconditioned), 0)
    return jax.lax.while_loop(unfinished, step, state)[0]


def _coarsen(level: _Level) -> list[_Level]:
    """The level and coarser ones, of cells of 2 x 2: Galerkin's systems for what is constant within each cell."""
    levels = [level]
    while min(level.diagonal.shape[_ROWS:]) > _COARSEST:
        diagonal, right, left, down, up = (_even(x) for x in level)
        within = right[..., 0::2] + left[..., 1::2], down[..., 0::2, :] + up[..., 1::2, :]
        level = _Level(
            _sum_cells(diagonal) - _sum_rows(within[0]) - _sum_columns(within[1]),
            _sum_rows(right[..., 1::2]),
            _sum_rows(left[..., 0::2]),
            _sum_columns(down[..., 1::2, :]),
            _sum_columns(up[..., 0::2, :]),
        )
        levels.append(level)
    return levels


def _even(x: jax.Array) -> jax.Array:
    height, width = x.shape[_ROWS:]
    return jnp.pad(x, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)))


# Sums of slices: what XLA makes of a reduction over so short an axis takes a CPU ten times as long.
def _sum_rows(x: jax.Array) -> jax.Array:
    return x[..., 0::2, :] + x[..., 1::2, :]


def _sum_columns(x: jax.Array) -> jax.Array:
    return x[..., 0::2] + x[..., 1::2]


def _sum_cells(x: jax.Array) -> jax.Array:
    return _sum_rows(_sum_columns(_even(x)))


def _cycle(levels: list[_Level], residual: jax.Array) -> jax.Array:
    """Roughly the solution, by a map that is linear, symmetric and positive, as conjugate gradients need."""
    level, *coarser = levels
    scale = jnp.where(level.diagonal > 0, _DAMPING / level.diagonal, 0)

    def smooth(x, sweeps):
        # a loop also where it is short: XLA would compute everything before anew for each of its neighbours
        return jax.lax.fori_loop(0, sweeps, lambda _, x: x + scale * (residual - _apply(level, x)), x)

    if not coarser:
        return smooth(jnp.zeros_like(residual), _COARSEST_SWEEPS)
    x = smooth(jnp.zeros_like(residual), _SWEEPS)
    correction = _cycle(coarser, _sum_cells(residual - _apply(level, x)))
    correction = repeat(correction, "n c h w -> n c (h p) (w q)", p=2, q=2)
    height, width = x.shape[_ROWS:]
    return smooth(x + _OVERSHOOT * (level.diagonal > 0) * correction[..., :height, :width], _SWEEPS)
