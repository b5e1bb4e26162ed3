"""Images blended from gradients, and which pixels gradients tie to what is known.

Source: the gradient domain of FGVC (Gao et al., ECCV 2020) as ISVI (Zhang et al., CVPR 2022) weights it.
"""

import jax
import jax.numpy as jnp

from m3ddm_jax.flow.least_squares import Edges, flood, solve


def gradient_mask(mask: jax.Array) -> jax.Array:
    """The pixels [..., H, W, 1] of which a difference, to the right or down, touches the mask [..., H, W, 1], bool."""
    masked = mask > 0
    right = jnp.pad(masked[..., 1:, :], [(0, 0)] * (mask.ndim - 2) + [(0, 1), (0, 0)])
    down = jnp.pad(masked[..., 1:, :, :], [(0, 0)] * (mask.ndim - 3) + [(0, 1), (0, 0), (0, 0)])
    return masked | right | down


@jax.jit
def blend(images: jax.Array, mask: jax.Array, gradients: Edges, missing: jax.Array | None = None) -> jax.Array:
    """Images whose pixels under the mask follow gradients as nearly as they can, and join the known ones seamlessly.

    images: [N, H, W, C]; what is under the mask is not looked at. mask: [N or 1, H, W, 1], 1 = unknown. gradients:
    differences to the right and down, [N, H, W, C] each. missing: [N or 1, H, W, 1], 1 where neither is known.
    Returns float32 [N, H, W, C] that may leave the images' range, known pixels unchanged; unknown ones that no gradient
    ties to known ones are as near to zero as their gradients allow. Differentiable in reverse.

    Edges between two unknown pixels count twice, as in the released code, which states them once from either end.
    """
    unknown = (mask > 0).astype(jnp.float32)
    known_edge = 1.0 if missing is None else 1.0 - (missing > 0)
    right = jnp.pad(unknown[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
    below = jnp.pad(unknown[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    weights = Edges((unknown + right) * known_edge, (unknown + below) * known_edge)
    return solve(images, mask, gradients, weights)


@jax.jit
def unresolved(mask: jax.Array, missing: jax.Array) -> jax.Array:
    """The pixels of a mask that no path of known gradients leads to from known pixels: bool [N, H, W, 1].

    A path goes right and down all the way, or left and up. mask: [N, H, W, 1], 1 = unknown; missing: the same, 1 where
    the differences to the right and down are unknown.
    """
    known, given = mask <= 0, missing <= 0

    def forward(reached):
        onward = reached & given
        right = jnp.pad(onward[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        return right | jnp.pad(onward[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))

    def backward(reached):
        left = jnp.pad(reached[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
        return given & (left | jnp.pad(reached[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0))))

    return ~(flood(known, forward) | flood(known, backward))
