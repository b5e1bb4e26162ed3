import pytest

from configs import m3ddm_tiny
from m3ddm_jax.benchmarks import forward


def test_forward_is_compared_with_the_convolution_of_the_same_run(monkeypatch):
    monkeypatch.setattr(forward, "REPEATS", 1)
    result = forward.measure(m3ddm_tiny.get_config())
    assert result["forward_in_convolutions"] == result["forward_seconds"] / result["convolution_seconds"] > 0


def test_forward_without_torch_reports_seconds_alone(monkeypatch):
    monkeypatch.setattr(forward, "REPEATS", 1)
    monkeypatch.setattr(forward, "_torch_convolution", lambda: None)
    result = forward.measure(m3ddm_tiny.get_config())
    assert result["forward_seconds"] > 0 and "no yardstick" in result["note"]
    assert "forward_in_convolutions" not in result


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-4), pytest.param("bfloat16", 0.1, marks=pytest.mark.slow)]
)
def test_the_network_in_pytorch_is_the_same(dtype, tolerance):
    config = m3ddm_tiny.get_config()
    config.model.update(
        block_out_channels=(8, 16), attention_levels=(True, False), norm_num_groups=4, num_heads=2, dtype=dtype
    )
    result = forward.compare_with_torch(config)
    assert 0 < result["largest difference / largest number"] < tolerance
    assert result["here / PyTorch"] == pytest.approx(result["here: seconds"] / result["PyTorch: seconds"])


def test_what_has_no_twin_is_refused(monkeypatch):
    config = m3ddm_tiny.get_config()
    monkeypatch.setattr(forward.jax, "default_backend", lambda: "tpu")
    with pytest.raises(ValueError, match="PyTorch cannot use this tpu; a CPU or a GPU of CUDA is accepted"):
        forward.compare_with_torch(config)
    config.model.kind = "globalpaint"
    with pytest.raises(ValueError, match="the model is of kind globalpaint: m3ddm is accepted"):
        forward.compare_with_torch(config)
