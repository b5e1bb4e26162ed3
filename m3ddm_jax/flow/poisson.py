"""Images blended from gradients, and which pixels gradients tie to what is known.

Source: the gradient domain of FGVC (Gao et al., ECCV 2020) as ISVI (Zhang et al., CVPR 2022) weights it.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from m3ddm_jax.flow.least_squares import TOLERANCE, Anchors, Edges, solve


def gradient_mask(mask: jax.Array) -> jax.Array:
    """The pixels [..., H, W, 1] of which a difference, to the right or down, touches the mask [..., H, W, 1], bool."""
    masked = mask > 0
    right = jnp.pad(masked[..., 1:, :], [(0, 0)] * (mask.ndim - 2) + [(0, 1), (0, 0)])
    down = jnp.pad(masked[..., 1:, :, :], [(0, 0)] * (mask.ndim - 3) + [(0, 1), (0, 0), (0, 0)])
    return masked | right | down


@jax.jit
def blend(
    images: jax.Array,
    mask: jax.Array,
    gradients: Edges,
    missing: jax.Array | None = None,
    tolerance: float = TOLERANCE,
    anchors: Anchors | None = None,
) -> jax.Array:
    """Images whose pixels under the mask follow gradients as nearly as they can, and join the known ones seamlessly.

    images: [N, H, W, C]; what is under the mask is not looked at. mask: [N or 1, H, W, 1], 1 = unknown. gradients:
    differences to the right and down, [N, H, W, C] each. missing: [N or 1, H, W, 1], 1 where neither is known.
    tolerance, anchors: as in `solve`. Returns float32 [N, H, W, C] that may leave the images' range, known pixels
    unchanged; unknown ones that no gradient ties to known ones are as near to zero as their gradients allow.
    Differentiable in reverse.

    Edges between two unknown pixels count twice, as in the released code, which states them once from either end.
    """
    unknown = (mask > 0).astype(jnp.float32)
    known_edge = 1.0 if missing is None else 1.0 - (missing > 0)
    right = jnp.pad(unknown[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
    below = jnp.pad(unknown[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    weights = Edges((unknown + right) * known_edge, (unknown + below) * known_edge)
    return solve(images, mask, gradients, weights, tolerance, anchors)


@jax.jit
def unresolved(mask: jax.Array, missing: jax.Array) -> jax.Array:
    """The pixels of a mask that no path of known gradients leads to from known pixels: bool [N, H, W, 1].

    A path goes right and down all the way, or left and up. mask: [N, H, W, 1], 1 = unknown; missing: the same, 1 where
    the differences to the right and down are unknown.
    """
    known, given = mask <= 0, missing <= 0
    # A path that goes left and up is one that goes right and down in the image turned round, but for the ends of
    # which the differences are: there, that to the pixel it comes from is the one which the pixel itself has.
    turned = [jnp.flip(x, (1, 2)) for x in (known, given)]
    forward = _reached(known, given, leaving=True)
    backward = jnp.flip(_reached(*turned, leaving=False), (1, 2))
    return ~(forward | backward)


def _reached(known: jax.Array, given: jax.Array, leaving: bool) -> jax.Array:
    """What paths lead to, right and down all the way, from known pixels: bool [N, H, W, 1].

    given: pixels that a path may pass; leaving: it asks so of a pixel that it leaves, otherwise of one that it enters.
    """
    columns = jnp.arange(known.shape[2])[:, None]

    def last(where):
        return jax.lax.cummax(jnp.where(where, columns, -1), axis=1)

    def row(above, now):
        known, given = now
        seeds = known | (above if leaving else above & given)
        # A path along the row goes on from its last seed, unless something lies between that it cannot pass.
        barrier = jnp.pad(~given, ((0, 0), (1, 0), (0, 0)))[:, :-1] if leaving else ~given & ~seeds
        seed, stop = last(seeds), last(barrier)
        reached = (seed >= stop if leaving else seed > stop) & (seed >= 0)
        return reached & given if leaving else reached, reached

    nothing = jnp.zeros_like(known[:, 0])
    rows = [rearrange(x, "n h w 1 -> h n w 1") for x in (known, given)]
    _, reached = jax.lax.scan(row, nothing, tuple(rows))
    return rearrange(reached, "h n w 1 -> n h w 1")
