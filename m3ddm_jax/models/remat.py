"""What a block keeps of its forward pass for the backward one, by name."""

import flax.linen as nn
import jax

_POLICIES = {
    "blocks": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
REMAT = ("none", *_POLICIES)
"""none: everything. blocks: its inputs. dots: products with weights besides (not convolutions, nor attention's).
offload: as dots, in the host's memory."""


def rematerialised(block: type[nn.Module], remat: str | bool) -> type[nn.Module]:
    """A block that computes again in the backward pass what it has not kept; remat: one of REMAT, or whether "blocks".

    Raises ValueError for another policy.
    """
    if isinstance(remat, bool):
        remat = "blocks" if remat else "none"
    check_remat(remat)
    return block if remat == "none" else nn.remat(block, policy=_POLICIES[remat])


def check_remat(remat: str | bool) -> None:
    """Raise ValueError for what is no policy."""
    if not isinstance(remat, bool) and remat not in REMAT:
        raise ValueError(f"remat {remat!r} is unknown: one of {', '.join(REMAT)} is accepted")
