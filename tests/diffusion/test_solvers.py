import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion import solvers, targets
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {**BETAS, "timestep_spacing": "trailing"}


def network(x, t):
    """Any smooth function will do: an epsilon prediction that depends on both."""
    return 0.3 * x + np.float32(0.1 + t / 2000)


def run(solver, schedule, x, network=network):
    """The samples after each step."""
    state, samples = solver.start(jnp.asarray(x)), []
    for t, matrix in zip(solver.timesteps, solver.matrices, strict=True):
        epsilon = network(state[0], t)
        prediction = targets.convert("epsilon", solver.prediction, epsilon, state[0], schedule.alphas_cumprod[t])
        state = solvers.solver_step(matrix, state, prediction)
        samples.append(state[0])
    return samples


def run_reference(scheduler, timesteps, x):
    sample = torch.from_numpy(x)
    for t in timesteps:
        sample = scheduler.step(network(sample, int(t)), t, sample).prev_sample
    return sample


def draw():
    return np.random.default_rng(0).normal(size=(1, 2, 3, 3, 4)).astype(np.float32)


# Steps that divide 1,000: elsewhere the reference's DDIM steps to a timestep that is not the next of its list.
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25])
@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_equals_the_reference(name, steps):
    if name == "ddim":
        reference = DDIMScheduler(**TRAILING, clip_sample=False, set_alpha_to_one=True)
    else:
        reference = DPMSolverMultistepScheduler(**TRAILING, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    reference.set_timesteps(steps)
    # The reference's own table: its float32 products differ in the fourth digit, which is another test's subject.
    schedule = Schedule(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver(name, schedule, steps)
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps)
    expected = run_reference(reference, reference.timesteps, draw())
    # The reference works its coefficients out in float32; ours are float64 until the end.
    np.testing.assert_allclose(run(solver, schedule, draw())[-1], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 10, 50])
def test_plms_equals_the_reference_entered_at_its_second_timestep(steps):
    reference = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    reference.set_timesteps(steps)
    schedule = Schedule(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver("plms", schedule, steps)
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps[1:])
    expected = run_reference(reference, reference.timesteps[1:], draw())
    np.testing.assert_allclose(run(solver, schedule, draw())[-1], expected, rtol=1e-4, atol=1e-5)


def test_plms_follows_the_official_trajectory(goldens):
    golden = np.load(goldens / "m3ddm/sampler/pndm_trajectory.npz")
    schedule = make_schedule("scaled_linear")
    np.testing.assert_allclose(schedule.alphas_cumprod, golden["alphas_cumprod"], rtol=2e-6)
    solver = solvers.make_solver("plms", schedule, 50)
    np.testing.assert_array_equal(solver.timesteps, golden["timesteps_used"])
    samples = run(solver, schedule, golden["x_init"], lambda x, t: 0.3 * x + 0.5 * jnp.sin(2 * x + 0.01 * t))
    scale = np.abs(golden["trajectory"]).max()
    # Float32 throughout, over 50 steps.
    np.testing.assert_allclose(np.stack(samples) / scale, golden["trajectory"] / scale, atol=2e-5)


def test_noise_is_added_as_the_official_code_does(goldens):
    golden = np.load(goldens / "m3ddm/sampler/add_noise.npz")
    alpha_cumprod = make_schedule("scaled_linear").alphas_cumprod[golden["t"]]
    noisy = targets.add_noise(golden["x0"], golden["noise"], alpha_cumprod)
    np.testing.assert_allclose(noisy, golden["noisy"], atol=1e-6)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_perfect_network_is_followed_exactly_from_pure_noise(name, steps):
    solver = solvers.make_solver(name, make_schedule("cosine", zero_terminal_snr=True), steps)
    assert np.isfinite(solver.matrices).all()
    x0, x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    state = solver.start(jnp.asarray(x))
    for matrix in solver.matrices:
        state = solvers.solver_step(matrix, state, x0)
    np.testing.assert_allclose(state[0], x0, atol=1e-5)


@given(steps=st.integers(1, 60), strength=st.floats(0.1, 1))
def test_timesteps_fall_from_the_strength_to_above_zero(steps, strength):
    timesteps = solvers.make_solver("ddim", make_schedule("scaled_linear"), steps, strength).timesteps
    assert len(timesteps) == steps
    assert timesteps[0] == round(1000 * strength) - 1
    assert (np.diff(timesteps) < 0).all()
    assert timesteps[-1] >= 0


def test_what_does_not_fit_is_named():
    schedule = make_schedule("cosine")
    with pytest.raises(ValueError, match="1 to 500 steps"):
        solvers.make_solver("ddim", schedule, 501, 0.5)
    with pytest.raises(ValueError, match=r"'heun'.*ddim"):
        solvers.make_solver("heun", schedule, 3)
    for steps, strength in [(1, 1.0), (1001, 1.0), (50, 0.6)]:
        with pytest.raises(ValueError, match="2 to 1000 steps at strength 1"):
            solvers.make_solver("plms", schedule, steps, strength)
