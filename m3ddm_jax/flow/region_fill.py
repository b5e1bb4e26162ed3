"""What stands in for pixels that are unknown: black, or a smooth continuation of what is known."""

import jax
import jax.numpy as jnp
from einops import reduce

from m3ddm_jax.flow.least_squares import TOLERANCE, Edges, solve

BLACK = -1.0
UNKNOWN = ("black", "filled")


def hide(frames: jax.Array, mask: jax.Array, unknown: str = "black") -> jax.Array:
    """Frames [..., H, W, 3] in [-1, 1] as a network may see them, nothing of the pixels under the mask [..., H, W, 1]
    (1 = unknown) left.

    unknown: "black" puts -1 there, as M3DDM does; "filled" a smooth continuation of the known pixels.
    Raises ValueError for another word.
    """
    if unknown not in UNKNOWN:
        raise ValueError(f"unknown={unknown!r}: one of {', '.join(UNKNOWN)} is accepted")
    black = jnp.where(mask > 0, BLACK, frames)
    return fill_smoothly(black, mask) if unknown == "filled" else black


def fill_smoothly(frames: jax.Array, mask: jax.Array) -> jax.Array:
    """Frames [..., H, W, C] with the pixels under the mask [..., H, W, 1] (1 = unknown) replaced by averages of the
    known ones around, wider the farther these are; -1 where nothing is known. Known pixels stay as they are.

    Push-pull over a pyramid of halved sizes (Gortler et al., The Lumigraph, 1996).
    """
    known = jnp.broadcast_to(1.0 - (mask > 0), (*frames.shape[:-1], 1))
    push_pull = _push_pull
    for _ in frames.shape[:-3]:
        push_pull = jax.vmap(push_pull)
    filled = push_pull((frames - BLACK) * known, known) + BLACK
    return jnp.where(known > 0, frames, filled)


@jax.jit
def fill_laplace(images: jax.Array, mask: jax.Array, tolerance: float = TOLERANCE) -> jax.Array:
    """Images [N, H, W, C] with the pixels under the mask [N or 1, H, W, 1] (1 = unknown) stretched like a membrane
    over the known ones: each is the mean of its neighbours, and at the end of the image all goes on level.

    tolerance: as in `solve`. Returns float32, zero where nothing is known; what is under the mask is not looked at.
    Differentiable in reverse.
    Source: the diffusion that flow completion begins with in ISVI (Zhang et al., CVPR 2022).
    """
    level = jnp.zeros(images.shape, jnp.float32)
    alike = jnp.ones((1, *images.shape[1:3], 1), jnp.float32)
    return solve(images, mask, Edges(level, level), Edges(alike, alike), tolerance)


def _push_pull(weighted: jax.Array, weight: jax.Array) -> jax.Array:
    """weighted = weight * value [H, W, C], weight [H, W, 1] in 0..1 -> values everywhere; 0 where none is."""
    height, width = weight.shape[:2]
    if height % 2 or width % 2:
        total = reduce(weighted, "h w c -> 1 1 c", "sum")
        mean = total / jnp.maximum(reduce(weight, "h w c -> 1 1 c", "sum"), 1e-6)
        return weighted + (1 - weight) * mean
    total = reduce(weighted, "(h p) (w q) c -> h w c", "sum", p=2, q=2)
    count = reduce(weight, "(h p) (w q) c -> h w c", "sum", p=2, q=2)
    share = jnp.minimum(count, 1.0)
    coarse = _push_pull(total / jnp.maximum(count, 1e-6) * share, share)
    return weighted + (1 - weight) * jax.image.resize(coarse, weighted.shape, "linear")
