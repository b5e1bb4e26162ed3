import pytest

from m3ddm_jax.benchmarks import flow
from m3ddm_jax.models.raft import RAFT


def test_raft_is_timed_beside_torchvisions_or_says_that_there_is_none(monkeypatch):
    monkeypatch.setattr(flow, "REPEATS", 1)
    monkeypatch.setattr(flow, "ITERATIONS", 1)
    result = flow.compare_raft(RAFT(width=4), height=128, width=128)
    assert result["RAFT / torchvision"] == pytest.approx(result["RAFT: seconds"] / result["torchvision: seconds"])
    monkeypatch.setattr(flow, "_torch_raft", lambda: None)
    result = flow.compare_raft(RAFT(width=4), height=128, width=128)
    assert result["RAFT / torchvision"].startswith("no yardstick") and result["RAFT: seconds"] > 0


def test_a_frame_is_blended_and_a_clip_is_filled(monkeypatch):
    monkeypatch.setattr(flow, "REPEATS", 1)
    assert flow.measure_blend(24, 36)["Poisson solve: seconds a frame"] > 0
    result = flow.measure_clip(32, 48, 3)
    assert result["clip: frames"] == 3 and result["clip: seconds"] > 0
