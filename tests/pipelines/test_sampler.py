import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.schedule import make_schedule
from m3ddm_jax.diffusion.solvers import make_solver, solver_step
from m3ddm_jax.diffusion.targets import add_noise
from m3ddm_jax.pipelines.sampler import Conditions, make_sampler, window_noise

SCHEDULE = make_schedule("cosine", zero_terminal_snr=True)
WINDOWS, FRAMES, HEIGHT, WIDTH, CHANNELS = 2, 3, 2, 4, 2


class Network(nn.Module):
    """Says as x0 something that depends on all it is given, cell by cell."""

    def __call__(self, latents, mask, masked_latents, *, timestep, fps, context):
        contexts = jnp.tile(context.mean((1, 2)), len(fps) // len(context))  # clips take contexts in turn
        condition = (fps + contexts)[:, None, None, None, None]
        return 0.1 * latents + mask + masked_latents + condition + timestep / 1000


@pytest.fixture
def conditions():
    keys = jax.random.split(jax.random.key(0), 5)
    return Conditions(
        mask=jax.random.bernoulli(keys[0], 0.5, (WINDOWS, FRAMES, HEIGHT, WIDTH, 1)).astype(jnp.float32),
        masked_latents=jax.random.normal(keys[1], (WINDOWS, FRAMES, HEIGHT, WIDTH, CHANNELS)),
        guides=jnp.array([[True, False, False], [False, False, True]]),
        fps=jnp.array([3.0, 5.0]),
        context=jax.random.normal(keys[2], (1, 4, 3)),
        null_context=jax.random.normal(keys[3], (1, 4, 3)),
        black=jax.random.normal(keys[4], (HEIGHT, WIDTH, CHANNELS)),
    )


def draw():
    return np.random.default_rng(1).normal(size=(2, WINDOWS, FRAMES, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)


def plain_sample(guess, noise, conditions, solver, guidance):
    """The same in plain loops, one branch at a time."""
    first = solver.timesteps[0]
    state = solver.start(add_noise(guess, noise, *np.float32([SCHEDULE.signal[first], SCHEDULE.sigma[first]])))
    kept = conditions.guides[..., None, None, None]
    for timestep, matrix in zip(solver.timesteps, solver.matrices, strict=True):

        def branch(local, given, x=state[0], timestep=timestep):
            return Network()(
                x,
                conditions.mask if local else jnp.where(kept, conditions.mask, 1),
                conditions.masked_latents if local else jnp.where(kept, conditions.masked_latents, conditions.black),
                timestep=timestep,
                fps=conditions.fps,
                context=jnp.repeat(conditions.context if given else conditions.null_context, WINDOWS, axis=0),
            )

        e00, e10, e11 = branch(False, False), branch(True, False), branch(True, True)
        x0 = e11
        if guidance.interval[0] <= timestep / 1000 <= guidance.interval[1]:
            if guidance.global_scale == 1:
                e10 = e11
            x0 = e00 + guidance.local_scale * (e10 - e00) + guidance.global_scale * (e11 - e10)
        state = solver_step(matrix, state, x0)
    return state[0]


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(2.0, 4.0),
        Guidance(2.0, 1.0),
        Guidance(3.0, 3.0),
        Guidance(1.0, 4.0),
        Guidance(2.0, 4.0, (0.3, 0.7)),
    ],
)
def test_equals_a_plain_loop_over_branches(conditions, guidance):
    guess, noise = draw()
    solver = make_solver("dpm++", SCHEDULE, 6)
    sample = make_sampler(Network(), SCHEDULE, solver, prediction="x0", guidance=guidance)
    expected = plain_sample(guess, noise, conditions, solver, guidance)
    np.testing.assert_allclose(sample({}, guess, noise, conditions), expected, rtol=1e-4, atol=1e-4)


def test_each_window_may_bring_its_own_context(conditions):
    guess, noise = draw()
    solver = make_solver("ddim", SCHEDULE, 2)
    sample = make_sampler(Network(), SCHEDULE, solver, prediction="x0", guidance=Guidance(2.0, 4.0))
    conditions = conditions.replace(context=jax.random.normal(jax.random.key(9), (WINDOWS, 4, 3)))
    together = sample({}, guess, noise, conditions)
    for window in range(WINDOWS):
        this = slice(window, window + 1)
        names = ("mask", "masked_latents", "guides", "fps", "context")
        alone = conditions.replace(**{name: getattr(conditions, name)[this] for name in names})
        np.testing.assert_allclose(together[this], sample({}, guess[this], noise[this], alone), rtol=1e-5, atol=1e-5)


def test_clip_bounds_the_latents(conditions):
    guess, noise = draw()
    solver = make_solver("ddim", SCHEDULE, 3)
    sample = make_sampler(Network(), SCHEDULE, solver, prediction="x0", guidance=Guidance(), clip=0.5)
    assert np.abs(sample({}, guess, noise, conditions)).max() == 0.5


def test_a_stochastic_solver_adds_the_noise_of_each_step(conditions):
    guess, noise = draw()
    solver = make_solver("ancestral", SCHEDULE, 3)
    sample = make_sampler(Network(), SCHEDULE, solver, prediction="x0", guidance=Guidance())
    zeros = np.zeros((3, *noise.shape), np.float32)
    plain, noisy = (sample({}, guess, noise, conditions, zeros + value) for value in (0.0, 1.0))
    # The network keeps a tenth of the sample; noise of the first step passes the second, the last step adds none.
    keep, change = solver.matrices[1, 0]
    expected = 0.1 * (solver.noise[1, 0] + solver.noise[0, 0] * (keep + 0.1 * change))
    np.testing.assert_allclose(noisy - plain, np.full_like(plain, expected), rtol=1e-3)


def test_low_strength_keeps_the_guess(conditions):
    guess, noise = draw()
    solver = make_solver("ddim", SCHEDULE, 1, strength=0.001)

    class Echo(Network):
        def __call__(self, latents, *args, **kwargs):
            return latents

    sample = make_sampler(Echo(), SCHEDULE, solver, prediction="x0", guidance=Guidance())
    np.testing.assert_allclose(sample({}, guess, noise, conditions), guess, atol=0.05)


def test_noise_of_a_frame_depends_on_seed_stride_and_frame_alone():
    rng = jax.random.key(3)
    first = window_noise(rng, (2, 2), 5, (0, 5, 10))
    np.testing.assert_array_equal(window_noise(rng, (2, 2), 5, (10, 20))[0], first[2])
    assert (window_noise(rng, (2, 2), 1, (0,)) != first[0]).all()
    assert (window_noise(jax.random.key(4), (2, 2), 5, (0,)) != first[0]).all()
