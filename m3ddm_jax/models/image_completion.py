"""What networks that complete an image have in common: the check of their arguments, and sides that fit."""

import jax
import jax.numpy as jnp


def check_picture(name: str, image: jax.Array, mask: jax.Array) -> None:
    """Raise ValueError unless image is [N, H, W, 3] and mask [N, H, W, 1]. name: of the network in the message."""
    if image.ndim != 4 or image.shape[-1] != 3 or mask.shape != (*image.shape[:-1], 1):
        raise ValueError(
            f"{name} takes an image [N, H, W, 3] and its mask [N, H, W, 1], not {list(image.shape)} and "
            f"{list(mask.shape)}"
        )


def padded_to(x: jax.Array, multiple: int, least: int) -> jax.Array:
    """x [N, H, W, C], continued by symmetric reflection to the right and below, to multiples of at least `least`."""
    sides = [max(least, side + -side % multiple) for side in x.shape[1:3]]
    after = [(0, side - length) for side, length in zip(sides, x.shape[1:3], strict=True)]
    return jnp.pad(x, [(0, 0), *after, (0, 0)], mode="symmetric")
