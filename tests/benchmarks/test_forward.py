from configs import m3ddm_tiny as miniature
from m3ddm_jax.benchmarks import forward


def test_forward_is_compared_with_the_convolution_of_the_same_run(monkeypatch):
    monkeypatch.setattr(forward, "REPEATS", 1)
    result = forward.measure(miniature.get_config())
    assert result["forward_in_convolutions"] == result["forward_seconds"] / result["convolution_seconds"] > 0


def test_forward_without_torch_reports_seconds_alone(monkeypatch):
    monkeypatch.setattr(forward, "REPEATS", 1)
    monkeypatch.setattr(forward, "_torch_convolution", lambda: None)
    result = forward.measure(miniature.get_config())
    assert result["forward_seconds"] > 0 and "no yardstick" in result["note"]
    assert "forward_in_convolutions" not in result
