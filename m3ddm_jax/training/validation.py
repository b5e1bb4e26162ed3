"""How well clips are completed, measured where nothing was known of them, and how well noise is told from them; on the
same clips at every time."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from m3ddm_jax.parallel.constrain import BATCH_AXES, constrain
from m3ddm_jax.training.diffusion_step import Loss
from m3ddm_jax.training.encoding import DenoiserInputs
from m3ddm_jax.training.state import TrainState
from m3ddm_jax.types import Array

_BINS = 4


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


def losses_by_timestep(
    loss: Loss, state: TrainState, inputs: DenoiserInputs, num_timesteps: int
) -> dict[str, jax.Array]:
    """The loss of a batch by bins of timesteps, float32 scalars, of the trained weights and of the averaged ones: their
    mean "loss", "loss/0-249" and so on for 1000 timesteps; and the same of "loss_ema".

    The clips of a batch are spread evenly over a bin, and noise is the same at every time.
    """
    clips = inputs.latents.shape[0]
    edges = np.arange(_BINS + 1) * num_timesteps // _BINS
    within = (np.arange(clips) + 0.5) / clips
    timesteps = (edges[:-1, None] + within * np.diff(edges)[:, None]).astype(np.int32)
    noise = constrain(jax.random.normal(jax.random.key(0), inputs.latents.shape), BATCH_AXES)

    def measure(case: tuple[jax.Array, jax.Array]) -> jax.Array:
        averaged, timestep = case
        params = jax.tree.map(lambda raw, ema: jnp.where(averaged, ema, raw), state.params, state.ema_params)
        value, _ = loss({"params": params, "batch_stats": state.batch_stats}, inputs, timestep, noise)
        return value

    # One after the other: the network is compiled once, and the activations of one pass are held.
    found = jax.lax.map(measure, (np.repeat([False, True], _BINS), np.tile(timesteps, (2, 1))))
    losses = {}
    for name, values in zip(("loss", "loss_ema"), jnp.split(found, 2), strict=True):
        losses[name] = values.mean()
        for first, end, value in zip(edges, edges[1:], values, strict=False):
            losses[f"{name}/{first}-{end - 1}"] = value
    return losses


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
