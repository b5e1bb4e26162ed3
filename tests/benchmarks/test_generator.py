import pytest

from configs import in2out_tiny, m3ddm_tiny
from m3ddm_jax.benchmarks import generator
from m3ddm_jax.models.e2fgvi import E2FGVI

TINY = E2FGVI(width=4, flow_width=4, hidden=8, depth=1, num_heads=2, window=(3, 3), ffn_channels=1, deform_groups=2)
CLIP = {"height": 36, "width": 72, "num_local": 3, "references": 1}


@pytest.fixture(autouse=True)
def once(monkeypatch):
    monkeypatch.setattr(generator, "REPEATS", 1)


def test_the_yardstick_computes_the_same():
    result = generator.compare_with_torch(TINY, **CLIP)
    # float32 sums in another order, through some thirty layers.
    assert result["slim generator, largest difference"] < 1e-4
    here, plain = (result[f"slim generator, {name}: seconds"] for name in ("here", "PyTorch"))
    assert result["slim generator, here / PyTorch"] == here / plain > 0


def test_fewer_frames_are_drawn_with_fewer_operations():
    result = generator.measure_forward(TINY, **CLIP)
    assert result["generator frames"] == "3 local and 1 references of 72x36"
    every, local = (f"generator, {frames} frames: " for frames in ("all", "local"))
    assert 0 < result[f"{local}TFLOP"] < result[f"{every}TFLOP"]
    for name in ("compile seconds", "temporary MiB", "seconds"):
        assert result[every + name] > 0 and result[local + name] > 0


def test_memory_of_the_deformable_convolution_is_told_in_inputs():
    result = generator.measure_deformable_conv(height=12, width=10, channels=16, groups=2)
    names = ("deformable convolution", "alignment")
    for name in names:
        forward, gradients = (result[f"{name}, {what}: temporary / input"] for what in ("forward", "with gradients"))
        assert 1 < forward < gradients < 100


@pytest.mark.slow
@pytest.mark.usefixtures("quick_init")
def test_the_discriminator_has_a_share_of_a_step():
    config = in2out_tiny.get_config()
    config.model.update(width=4, hidden=8, depth=1, window=(2, 2), ffn_channels=1, deform_groups=2)
    config.discriminator.update(width=2)
    config.adversarial.update(plain_tubes=1, zoomed_tubes=0)
    config.data.update(num_frames=2, references=0, buckets=((24, 24),))
    config.train.update(batch_size=1)
    result = generator.measure_discriminator(config)
    whole, alone = (result[f"{name}: seconds"] for name in ("training step", "step without discriminator"))
    assert result["discriminator's share of a step"] == 1 - alone / whole
    assert 0 < result["discriminator's share of its operations"] < 1


def test_another_model_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="kind m3ddm: e2fgvi is accepted"):
        generator.measure(m3ddm_tiny.get_config())
