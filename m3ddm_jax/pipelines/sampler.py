"""The jitted sampler: from noise to the latents of a batch of windows, in one scan over the solver's table."""

import itertools
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import Schedule
from m3ddm_jax.diffusion.solvers import Solver, solver_step
from m3ddm_jax.diffusion.targets import add_noise, convert
from m3ddm_jax.types import Latents, Variables


@flax.struct.dataclass
class Conditions:
    """What is known of W windows.

    mask: [W, T, h, w, 1], 1 = generate; masked_latents: [W, T, h, w, C]; guides: bool [W, T], frames wholly known from
    an earlier window, which the null condition keeps; fps: [W].
    context, null_context: [1, S, D], tokens of the video's global frames and of none; black: [h, w, C], the latents of
    a black frame, which is what the null condition sees of the others.
    """

    mask: jax.Array
    masked_latents: jax.Array
    guides: jax.Array
    fps: jax.Array
    context: jax.Array
    null_context: jax.Array
    black: jax.Array


def make_sampler(
    module: nn.Module,
    schedule: Schedule,
    solver: Solver,
    *,
    prediction: str,
    guidance: Guidance,
    clip: float | None = None,
) -> Callable[[Variables, Latents, Latents, Conditions], Latents]:
    """A jitted function (variables, guess, noise, conditions) -> latents [W, T, h, w, C] of W windows.

    It starts from the guess [W, T, h, w, C] with noise added at the solver's first timestep. Each step runs the
    branches that guidance needs there as one batch. prediction: what the network predicts; clip: bound of the
    predicted clean latents, where the codec has one.
    """
    levels = solver.timesteps / schedule.num_timesteps
    guided = [guidance.acts(level) for level in levels]
    alphas_cumprod = schedule.alphas_cumprod[solver.timesteps]
    table = (solver.timesteps, alphas_cumprod, solver.coefficients)

    def step(variables: Variables, conditions: Conditions, branches: Mapping[tuple[bool, bool], float]):
        inputs = _stack_branches(conditions, branches)
        weights = jnp.asarray(list(branches.values()), jnp.float32)

        def run(carry, row):
            x, x0_before = carry
            timestep, alpha_cumprod, coefficients = row
            outputs = module.apply(
                variables,
                jnp.concatenate([x] * len(branches)),
                inputs.mask,
                inputs.masked_latents,
                timestep=timestep,
                fps=inputs.fps,
                context=inputs.context,
            )
            output = jnp.tensordot(weights, rearrange(outputs, "(n w) ... -> n w ...", n=len(branches)), axes=1)
            x0 = convert(prediction, "x0", output, x, alpha_cumprod)
            x0 = x0 if clip is None else jnp.clip(x0, -clip, clip)
            return (solver_step(coefficients, x, x0, x0_before), x0), None

        return run

    @jax.jit
    def sample(variables: Variables, guess: Latents, noise: Latents, conditions: Conditions) -> Latents:
        x = add_noise(guess, noise, alphas_cumprod[0])
        carry = (x, jnp.zeros_like(x))
        start = 0
        # Stretches of steps with and without guidance run different batches: one scan each.
        for acts, stretch in itertools.groupby(guided):
            stop = start + len(list(stretch))
            branches = guidance.weights() if acts else {(True, True): 1.0}
            rows = jax.tree.map(lambda values, span=slice(start, stop): jnp.asarray(values[span]), table)
            carry, _ = jax.lax.scan(step(variables, conditions, branches), carry, rows)
            start = stop
        return carry[0]

    return sample


def _stack_branches(conditions: Conditions, branches: Mapping[tuple[bool, bool], float]) -> Conditions:
    """The conditions of every branch (local given, global given), one behind the other along the window axis."""
    windows = conditions.mask.shape[0]
    kept = conditions.guides[:, :, None, None, None]
    null_mask = jnp.where(kept, conditions.mask, 1.0)
    null_latents = jnp.where(kept, conditions.masked_latents, conditions.black)

    def spread(context):
        return jnp.broadcast_to(context, (windows, *context.shape[1:]))

    return conditions.replace(
        mask=jnp.concatenate([conditions.mask if local else null_mask for local, _ in branches]),
        masked_latents=jnp.concatenate([conditions.masked_latents if local else null_latents for local, _ in branches]),
        fps=jnp.concatenate([conditions.fps] * len(branches)),
        context=jnp.concatenate(
            [spread(conditions.context if given else conditions.null_context) for _, given in branches]
        ),
    )


def window_noise(rng: jax.Array, shape: tuple[int, ...], stride: int, frames: tuple[int, ...]) -> np.ndarray:
    """Noise [T, *shape] of one window: each frame's is a function of (rng, stride, frame) alone, whatever the batch."""
    keys = [jax.random.fold_in(jax.random.fold_in(rng, stride), frame) for frame in frames]
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(jnp.stack(keys)))
