import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion import solvers, targets
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule

OPTIONS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}


def network(x, t):
    """Any smooth function will do: an epsilon prediction that depends on both."""
    return 0.3 * x + np.float32(0.1 + t / 2000)


def run(solver, schedule, x, prediction="epsilon"):
    before = x0 = jnp.zeros_like(x)
    for t, row in zip(solver.timesteps, solver.coefficients, strict=True):
        x0 = targets.convert(prediction, "x0", network(x, t), x, schedule.alphas_cumprod[t])
        x, before = solvers.solver_step(row, x, x0, before), x0
    return x


# Steps that divide 1,000: elsewhere the reference's DDIM steps to a timestep that is not the next of its list.
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25])
@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_equals_the_reference(name, steps):
    if name == "ddim":
        reference = DDIMScheduler(**OPTIONS, clip_sample=False, set_alpha_to_one=True)
    else:
        reference = DPMSolverMultistepScheduler(**OPTIONS, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    reference.set_timesteps(steps)
    # The reference's own table: its float32 products differ in the fourth digit, which is another test's subject.
    schedule = Schedule(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver(name, schedule, solvers.spaced_timesteps(1000, steps))
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps)
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3, 4)).astype(np.float32)
    expected = torch.from_numpy(x)
    for t in reference.timesteps:
        expected = reference.step(network(expected, int(t)), t, expected).prev_sample
    # The reference works its coefficients out in float32; ours are float64 until the end.
    np.testing.assert_allclose(run(solver, schedule, x), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_perfect_network_is_followed_exactly_from_pure_noise(name, steps):
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    solver = solvers.make_solver(name, schedule, solvers.spaced_timesteps(1000, steps))
    assert np.isfinite(solver.coefficients).all()
    x0, x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    for row in solver.coefficients:
        x = solvers.solver_step(row, x, x0, x0)
    np.testing.assert_allclose(x, x0, atol=1e-5)


@given(steps=st.integers(1, 60), strength=st.floats(0.1, 1))
def test_timesteps_fall_from_the_strength_to_above_zero(steps, strength):
    timesteps = solvers.spaced_timesteps(1000, steps, strength)
    assert len(timesteps) == steps
    assert timesteps[0] == round(1000 * strength) - 1
    assert (np.diff(timesteps) < 0).all()
    assert timesteps[-1] >= 0


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="1 to 500 steps"):
        solvers.spaced_timesteps(1000, 501, 0.5)
    with pytest.raises(ValueError, match="'heun'.*ddim"):
        solvers.make_solver("heun", make_schedule("cosine"), np.array([3]))
