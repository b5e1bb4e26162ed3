import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from m3ddm_jax.diffusion import solvers, targets
from m3ddm_jax.diffusion.schedule import Schedule, make_schedule, variance_preserving

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {**BETAS, "timestep_spacing": "trailing"}

# Of six steps with a fixed network, recorded before schedules were tables of signal and sigma.
RECORDED = {
    "ddim": [-0.54185641, -0.14311086, 0.60690522, 0.8851009, 0.96256411],
    "dpm++": [-0.55947953, -0.16439469, 0.61768317, 0.87698722, 0.9529857],
    "plms": [-0.52327317, -0.25524819, 0.39763176, 0.64975166, 0.69877964],
}


def network(x, t):
    """Any smooth function will do: an epsilon prediction that depends on both."""
    return 0.3 * x + np.float32(0.1 + t / 2000)


def run(solver, schedule, x, network=network, prediction="epsilon", noise=None):
    """The samples after each step."""
    state, samples = solver.start(jnp.asarray(x)), []
    for step, (t, matrix) in enumerate(zip(solver.timesteps, solver.matrices, strict=True)):
        level = np.float32(schedule.signal[t]), np.float32(schedule.sigma[t])
        asked = targets.convert(prediction, solver.prediction, network(state[0], t), state[0], *level)
        fresh = None if noise is None else (solver.noise[step], noise[step])
        state = solvers.solver_step(matrix, state, asked, fresh)
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
    schedule = variance_preserving(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver(name, schedule, steps)
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps)
    expected = run_reference(reference, reference.timesteps, draw())
    # The reference works its coefficients out in float32; ours are float64 until the end.
    np.testing.assert_allclose(run(solver, schedule, draw())[-1], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [2, 3, 4, 6, 10, 50])
def test_plms_equals_the_reference_entered_at_its_second_timestep(steps):
    reference = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    reference.set_timesteps(steps)
    schedule = variance_preserving(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver("plms", schedule, steps)
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps[1:])
    expected = run_reference(reference, reference.timesteps[1:], draw())
    np.testing.assert_allclose(run(solver, schedule, draw())[-1], expected, rtol=1e-4, atol=1e-5)


def test_plms_follows_the_official_trajectory(goldens):
    golden = np.load(goldens / "m3ddm/sampler/pndm_trajectory.npz")
    schedule = make_schedule("scaled_linear")
    np.testing.assert_allclose(schedule.signal**2, golden["alphas_cumprod"], rtol=2e-6)
    solver = solvers.make_solver("plms", schedule, 50)
    np.testing.assert_array_equal(solver.timesteps, golden["timesteps_used"])
    samples = run(solver, schedule, golden["x_init"], lambda x, t: 0.3 * x + 0.5 * jnp.sin(2 * x + 0.01 * t))
    scale = np.abs(golden["trajectory"]).max()
    # Float32 throughout, over 50 steps.
    np.testing.assert_allclose(np.stack(samples) / scale, golden["trajectory"] / scale, atol=2e-5)


def test_noise_is_added_as_the_official_code_does(goldens):
    golden = np.load(goldens / "m3ddm/sampler/add_noise.npz")
    schedule = make_schedule("scaled_linear")
    signal, sigma = (table[golden["t"]] for table in (schedule.signal, schedule.sigma))
    noisy = targets.add_noise(golden["x0"], golden["noise"], signal, sigma)
    np.testing.assert_allclose(noisy, golden["noisy"], atol=1e-6)


def network_of_flow(x, t):
    return 0.3 * x + 0.1


# Numbers of steps that divide 1,000: the reference's sigmas are timesteps of the table then.
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_euler_equals_the_reference_of_flow_matching(steps, shift):
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    sample = torch.from_numpy(draw())
    for t in reference.timesteps:
        sample = reference.step(network_of_flow(sample, None), t, sample).prev_sample
    schedule = make_schedule("rectified_flow", shift=1 / shift)
    solver = solvers.make_solver("euler", schedule, steps)
    np.testing.assert_allclose(schedule.sigma[solver.timesteps], reference.sigmas[:-1], rtol=1e-5)
    found = run(solver, schedule, draw(), network_of_flow, "velocity")[-1]
    np.testing.assert_allclose(found, sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_unipc_equals_the_reference_of_flow_matching(steps, shift):
    reference = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    reference.set_timesteps(steps)
    sigma = reference.sigmas.numpy().astype(np.float64)[-2::-1]
    schedule = Schedule(1 - sigma, sigma)
    sample = torch.from_numpy(draw())
    for t in reference.timesteps:
        sample = reference.step(network_of_flow(sample, None), t, sample).prev_sample
    found = run(solvers.make_solver("unipc", schedule, steps), schedule, draw(), network_of_flow, "velocity")[-1]
    np.testing.assert_allclose(found, sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_unipc_equals_the_reference_where_variance_is_preserved(steps):
    reference = UniPCMultistepScheduler(**TRAILING, final_sigmas_type="zero")
    reference.set_timesteps(steps)
    schedule = variance_preserving(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver("unipc", schedule, steps)
    np.testing.assert_array_equal(solver.timesteps, reference.timesteps)
    expected = run_reference(reference, reference.timesteps, draw())
    np.testing.assert_allclose(run(solver, schedule, draw())[-1], expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("steps", [2, 10])
def test_ancestral_equals_the_reference_with_the_same_noise(steps):
    reference = DDIMScheduler(**TRAILING, clip_sample=False, set_alpha_to_one=True)
    reference.set_timesteps(steps)
    schedule = variance_preserving(reference.alphas_cumprod.numpy())
    solver = solvers.make_solver("ancestral", schedule, steps)
    noise = np.random.default_rng(1).normal(size=(steps, *draw().shape)).astype(np.float32)
    sample = torch.from_numpy(draw())
    for t, fresh in zip(reference.timesteps, torch.from_numpy(noise), strict=True):
        sample = reference.step(network(sample, int(t)), t, sample, eta=1.0, variance_noise=fresh).prev_sample
    assert (solver.noise[:-1] > 0).all() and solver.noise[-1] == 0
    found = run(solver, schedule, draw(), noise=noise)[-1]
    np.testing.assert_allclose(found, sample, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpm++", "euler", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_perfect_network_is_followed_exactly_from_pure_noise(name, schedule, steps):
    schedule = make_schedule(schedule, zero_terminal_snr=True)
    solver = solvers.make_solver(name, schedule, steps)
    assert np.isfinite(solver.matrices).all()
    x0, x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    noise = None if solver.noise is None else np.ones((steps, 50), np.float32)
    found = run(solver, schedule, x, lambda *_: x0, "x0", noise)[-1]
    np.testing.assert_allclose(found, x0, atol=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
def test_euler_is_ddim_in_terms_of_the_velocity(schedule):
    schedule = make_schedule(schedule, zero_terminal_snr=True)
    ddim, euler = (solvers.make_solver(name, schedule, 6, 0.8) for name in ("ddim", "euler"))
    expected = run(ddim, schedule, draw(), network_of_flow, "velocity")
    np.testing.assert_allclose(run(euler, schedule, draw(), network_of_flow, "velocity"), expected, atol=1e-5)


@pytest.mark.parametrize("name", RECORDED)
def test_trajectories_stay_as_they_were(name):
    schedule = make_schedule("cosine", zero_terminal_snr=True)
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    found = run(solvers.make_solver(name, schedule, 6), schedule, x, lambda x, t: np.tanh(x) + t / 2000, "x0")
    np.testing.assert_allclose(found[-1], RECORDED[name], atol=1e-6)


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
    with pytest.raises(ValueError, match="500 steps starts where the schedule has no signal"):
        solvers.make_solver("plms", make_schedule("cosine", zero_terminal_snr=True), 500)
