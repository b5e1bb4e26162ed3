import numpy as np
import pytest
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from m3ddm_jax.diffusion import schedule


def test_scaled_linear_equals_stable_diffusion():
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    # The reference multiplies 1,000 factors in float32.
    np.testing.assert_allclose(schedule.make_schedule("scaled_linear").signal ** 2, reference.alphas_cumprod, rtol=1e-4)


def test_cosine_equals_the_reference():
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.make_schedule("cosine").signal ** 2, reference, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
    plain = schedule.make_schedule(name).signal
    made = schedule.make_schedule(name, zero_terminal_snr=True)
    zero = made.signal
    assert zero[-1] == 0 and made.ends_without_signal and not schedule.make_schedule(name).ends_without_signal
    np.testing.assert_allclose(zero[0], plain[0], rtol=1e-6)
    assert (np.diff(zero) < 0).all()


def test_zero_terminal_snr_equals_the_reference():
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    betas = rescale_zero_terminal_snr(reference.betas).numpy().astype(np.float64)
    ours = schedule.make_schedule("scaled_linear", zero_terminal_snr=True).signal ** 2
    np.testing.assert_allclose(ours, np.cumprod(1 - betas), rtol=1e-2, atol=1e-5)


def test_shift_multiplies_the_signal_to_noise_ratio():
    plain = schedule.cosine().astype(np.float64)
    shifted = schedule.shift_snr(plain, 0.25)
    np.testing.assert_allclose(shifted / (1 - shifted), plain / (1 - plain) / 16, rtol=1e-9)


def test_what_is_not_a_schedule_is_named():
    with pytest.raises(ValueError, match="shift must be positive"):
        schedule.make_schedule("cosine", shift=0)
    with pytest.raises(ValueError, match="'linear'.*cosine, rectified_flow, scaled_linear"):
        schedule.make_schedule("linear")
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\)"):
        schedule.Schedule(np.ones(3), np.ones(2))


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_variance_is_preserved(name):
    made = schedule.make_schedule(name, shift=0.3)
    np.testing.assert_allclose(made.signal**2 + made.sigma**2, 1, rtol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_rectified_flow_equals_the_reference(shift):
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = schedule.make_schedule("rectified_flow", shift=1 / shift)
    np.testing.assert_allclose(ours.sigma[::-1], reference.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours.signal, 1 - ours.sigma, atol=1e-12)
    assert ours.ends_without_signal
