"""The jitted sampler: from noise to the latents of a batch of windows, in one scan over the solver's table."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.solvers import Solver, solver_step
from m3ddm_jax.diffusion.targets import add_noise, check_prediction, convert
from m3ddm_jax.types import Latents, Variables


@flax.struct.dataclass
class Conditions:
    """What is known of W windows.

    mask: [W, T, h, w, 1], 1 = generate; masked_latents: [W, T, h, w, C]; guides: bool [W, T], frames wholly known from
    an earlier window, which the null condition keeps; fps: [W].
    context, null_context: what the network's encode_context makes of global frames and of none, of one video (1 along
    the first axis) or of one for each window (W); black: [1, h, w, C], the latents of a black frame, or [T, h, w, C],
    of a black clip, which is what the null condition sees of the others.
    """

    mask: jax.Array
    masked_latents: jax.Array
    guides: jax.Array
    fps: jax.Array
    context: Any
    null_context: Any
    black: jax.Array


def make_sampler(
    module: nn.Module,
    schedule: Schedule,
    solver: Solver,
    *,
    prediction: str,
    guidance: Guidance,
    clip: float | None = None,
) -> Callable[..., Latents]:
    """A jitted function (variables, guess, noise, conditions, step_noise=None) -> latents [W, T, h, w, C] of W windows.

    It starts from the guess [W, T, h, w, C] with noise of that shape added at the solver's first timestep. Each step
    runs the branches that guidance needs there as one batch. step_noise: [S, W, T, h, w, C], fresh noise of each step,
    for a solver that has a noise column. prediction: what the network predicts; clip: bound of the predicted clean
    latents, where the codec has one. Raises ValueError for a prediction that does not fit the schedule.
    """
    check_prediction(prediction, schedule)
    guided = [guidance.acts(timestep / schedule.num_timesteps) for timestep in solver.timesteps]
    levels = np.stack([schedule.signal, schedule.sigma])[:, solver.timesteps].astype(np.float32)
    table = {"timestep": solver.timesteps, "level": levels.T, "matrix": solver.matrices}

    def step(variables: Variables, conditions: Conditions, branches: Mapping[tuple[bool, bool], float]):
        inputs = _stack_branches(conditions, branches)
        weights = jnp.asarray(list(branches.values()), jnp.float32)

        def run(state, row):
            signal, sigma = row["level"]
            x = state[0]
            output = _guided_output(module, variables, x, row["timestep"], inputs, weights)
            if clip is not None:
                x0 = jnp.clip(convert(prediction, "x0", output, x, signal, sigma), -clip, clip)
                output = convert("x0", solver.prediction, x0, x, signal, sigma)
            else:
                output = convert(prediction, solver.prediction, output, x, signal, sigma)
            return solver_step(row["matrix"], state, output, row.get("noise")), None

        return run

    @jax.jit
    def sample(
        variables: Variables,
        guess: Latents,
        noise: Latents,
        conditions: Conditions,
        step_noise: Latents | None = None,
    ) -> Latents:
        state = solver.start(add_noise(guess, noise, *levels[:, 0]))
        of_steps = table if solver.noise is None else table | {"noise": (solver.noise, step_noise)}
        start = 0
        # Stretches of steps with and without guidance run different batches: one scan each.
        for acts, stretch in itertools.groupby(guided):
            stop = start + len(list(stretch))
            branches = guidance.weights() if acts else {(True, True): 1.0}
            rows = jax.tree.map(lambda values, span=slice(start, stop): jnp.asarray(values[span]), of_steps)
            state, _ = jax.lax.scan(step(variables, conditions, branches), state, rows)
            start = stop
        return state[0]

    return sample


def _guided_output(
    module: nn.Module, variables: Variables, x: Latents, timestep: jax.Array, inputs: Conditions, weights: jax.Array
) -> jax.Array:
    """The weighted sum of the network's outputs for all branches of a window, [W, T, h, w, C]; one batch."""
    count = len(weights)
    outputs = module.apply(
        variables,
        repeat(x, "w ... -> (w n) ...", n=count),
        inputs.mask,
        inputs.masked_latents,
        timestep=timestep,
        fps=inputs.fps,
        context=inputs.context,
    )
    outputs = rearrange(outputs, "(w n) ... -> n w ...", n=count)
    return jnp.tensordot(weights, outputs, axes=1, precision="highest")


def _stack_branches(conditions: Conditions, branches: Mapping[tuple[bool, bool], float]) -> Conditions:
    """The conditions of every branch (local given, global given): those of a window behind one another.

    Contexts that windows share are stacked once for all of them, as the network takes its contexts in turn.
    """
    kept = conditions.guides[:, :, None, None, None]
    null_mask = jnp.where(kept, conditions.mask, 1.0)
    null_latents = jnp.where(kept, conditions.masked_latents, conditions.black)

    def stack(given, null, which):
        chosen = [given if is_given else jnp.broadcast_to(null, given.shape) for is_given in which]
        return rearrange(jnp.stack(chosen), "n w ... -> (w n) ...")

    local, with_global = zip(*branches, strict=True)
    return conditions.replace(
        mask=stack(conditions.mask, null_mask, local),
        masked_latents=stack(conditions.masked_latents, null_latents, local),
        fps=repeat(conditions.fps, "w -> (w n)", n=len(branches)),
        context=jax.tree.map(lambda x, null: stack(x, null, with_global), conditions.context, conditions.null_context),
    )


def window_noise(rng: jax.Array, shape: tuple[int, ...], stride: int, frames: tuple[int, ...]) -> np.ndarray:
    """Noise [T, *shape] of one window: each frame's is a function of (rng, stride, frame) alone, whatever the batch."""
    keys = [jax.random.fold_in(jax.random.fold_in(rng, stride), frame) for frame in frames]
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(jnp.stack(keys)))
