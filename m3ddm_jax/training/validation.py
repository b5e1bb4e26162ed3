"""How well clips are completed, measured where nothing was known of them; on the same clips at every time."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from m3ddm_jax.types import Array


class Completion(NamedTuple):
    """made, truth: uint8 [B, T, H, W, 3], what a network makes of clips, their known pixels pasted, and the clips;
    unknown: bool [B, T, H, W, 1], what it had to make; errors: of the batch by name, float32 scalars, where there is
    more to measure than pixels."""

    made: Array
    truth: Array
    unknown: Array
    errors: Mapping[str, Array] | None = None


def side_by_side(completion: Completion) -> jax.Array:
    """uint8 [B, T, H, 3 W, 3]: what is known of clips, what was made of that, and the truth."""
    made, truth, unknown, _ = completion
    return jnp.concatenate([jnp.where(unknown, 0, truth), made, truth], axis=3)


def completion_sums(completion: Completion) -> dict[str, Any]:
    """Sums over a batch, float32 scalars, that add up over batches: squared error and number of unknown values, and
    absolute steps between unknown neighbours of the same frame, of what was made and of the truth. Values in 0..1.
    And the batch's further errors, and that it is one batch."""
    made, truth = (frames.astype(jnp.float32) / 255 for frames in (completion.made, completion.truth))
    unknown = completion.unknown

    def steps(frames: jax.Array) -> jax.Array:
        down = jnp.abs(jnp.diff(frames, axis=2)) * (unknown[:, :, 1:] & unknown[:, :, :-1])
        across = jnp.abs(jnp.diff(frames, axis=3)) * (unknown[:, :, :, 1:] & unknown[:, :, :, :-1])
        return down.sum() + across.sum()

    return {
        "error": (jnp.square(made - truth) * unknown).sum(),
        "values": 3.0 * unknown.sum(),
        "steps_made": steps(made),
        "steps_truth": steps(truth),
        "errors": dict(completion.errors or {}),
        "batches": jnp.ones(()),
    }


def completion_metrics(sums: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """{"validation_psnr", "validation_sharpness"} over all unknown pixels of batches, from their `completion_sums`; and
    the mean of each further error over batches, "validation_" before its name.

    PSNR in dB, at most 100. Sharpness: steps between neighbours beside the truth's, 1 being right and less blurred; 1
    where the truth has none.
    """
    total = jax.tree.map(lambda *parts: sum(map(float, parts)), *sums)
    error = max(total["error"] / max(total["values"], 1.0), 1e-10)
    sharpness = total["steps_made"] / total["steps_truth"] if total["steps_truth"] else 1.0
    further = {f"validation_{name}": error / total["batches"] for name, error in total["errors"].items()}
    return {"validation_psnr": float(-10 * jnp.log10(error)), "validation_sharpness": sharpness} | further
