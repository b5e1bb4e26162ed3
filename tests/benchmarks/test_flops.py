import json

import pytest

from configs import globalpaint_key_tiny, m3ddm
from configs import m3ddm_tiny as miniature
from m3ddm_jax.benchmarks import flops


@pytest.mark.slow
def test_flops_of_the_full_model_are_those_of_the_official_code(goldens):
    official = json.loads((goldens / "m3ddm" / "full" / "flops.json").read_text())
    result = flops.measure(m3ddm.get_config())
    assert result["parameters"] == 1_299_279_320 and result["frames of a window"] == "16 of 256x256"
    # Exact but for the division: both counts take padding for data.
    branch = official["one branch, 16f 256x256"]["total_tflop"]
    assert result["official TFLOP a branch"] == pytest.approx(branch, rel=1e-12)
    # The branches of a batch share the frame index's MLP: 7e-5 less than four times one.
    evaluation = official["four-branch guidance"]["total_tflop"]
    assert result["official TFLOP an evaluation"] == pytest.approx(evaluation, rel=1e-4)
    # What a branch is spared: keys and values of 16 * 14 * 14 tokens for each of 16 frames, and the encoder.
    keys_values = 2 * 2 * 3136 * 320 * (5 * 320 + 5 * 640 + 6 * 1280) / flops.TERA
    encoder = result["TFLOP of contexts, once a video"] / 2 - keys_values
    assert 0.002 < encoder < 0.003
    assert result["TFLOP a branch"] == pytest.approx(branch - 16 * keys_values - encoder, rel=1e-12)


def test_flops_follow_guidance_and_steps():
    config = miniature.get_config()
    config.sample.update(steps=4, solver="ddim", guidance_local=2.0, guidance_global=4.0, guidance_interval=(0.5, 1.0))
    guided = flops.measure(config)
    config.sample.update(guidance_local=1.0, guidance_global=1.0)
    plain = flops.measure(config)
    branch = plain["TFLOP a branch"]
    assert branch == plain["TFLOP an evaluation"] == guided["TFLOP a branch"]
    assert branch == plain["TFLOP a branch: convolutions"] + plain["TFLOP a branch: matrix products"]
    assert (plain["branches an evaluation"], guided["branches an evaluation"]) == (1, 3)
    assert guided["TFLOP of contexts, once a video"] == 2 * plain["TFLOP of contexts, once a video"]
    # Timesteps 999 and 749 lie in the interval, 499 and 249 do not.
    assert plain["TFLOP a window"] == pytest.approx(4 * branch)
    assert guided["TFLOP a window"] == pytest.approx((3 + 3 + 1 + 1) * branch)
    assert guided["official TFLOP a window"] == pytest.approx(50 * 4 * guided["official TFLOP a branch"])
    ratio = guided["official TFLOP a window"] / guided["TFLOP a window"]
    assert guided["official / ours, a window"] == pytest.approx(ratio)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="kind globalpaint: m3ddm is accepted"):
        flops.measure(globalpaint_key_tiny.get_config())
