import numpy as np
import pytest
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from m3ddm_jax.diffusion import schedule


def test_scaled_linear_equals_stable_diffusion():
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    # The reference multiplies 1,000 factors in float32.
    np.testing.assert_allclose(
        schedule.make_schedule("scaled_linear").alphas_cumprod, reference.alphas_cumprod, rtol=1e-4
    )


def test_cosine_equals_the_reference():
    reference = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.make_schedule("cosine").alphas_cumprod, reference, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
    plain = schedule.make_schedule(name).alphas_cumprod
    zero = schedule.make_schedule(name, zero_terminal_snr=True).alphas_cumprod
    assert zero[-1] == 0
    np.testing.assert_allclose(zero[0], plain[0], rtol=1e-6)
    assert (np.diff(zero) < 0).all()


def test_zero_terminal_snr_equals_the_reference():
    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    betas = rescale_zero_terminal_snr(reference.betas).numpy().astype(np.float64)
    ours = schedule.make_schedule("scaled_linear", zero_terminal_snr=True).alphas_cumprod
    np.testing.assert_allclose(ours, np.cumprod(1 - betas), rtol=1e-2, atol=1e-5)


def test_shift_multiplies_the_signal_to_noise_ratio():
    plain = schedule.cosine().astype(np.float64)
    shifted = schedule.shift_snr(plain, 0.25)
    np.testing.assert_allclose(shifted / (1 - shifted), plain / (1 - plain) / 16, rtol=1e-9)


def test_what_is_not_a_schedule_is_named():
    with pytest.raises(ValueError, match="shift must be positive"):
        schedule.make_schedule("cosine", shift=0)
    with pytest.raises(ValueError, match="'linear'.*cosine, scaled_linear"):
        schedule.make_schedule("linear")
