import pytest

from m3ddm_jax.benchmarks import attention, limits
from m3ddm_jax.models.globalpaint import GlobalPaintUNet

MODEL = GlobalPaintUNet(
    block_out_channels=(16, 32),
    attention_levels=(True, False),
    num_heads=(2, 4),
    norm_num_groups=4,
    est_window=(2, 2, 2),
)
CLIP = (4, 32, 64)


def test_operations_are_those_of_the_formulas_and_seconds_are_measured(monkeypatch):
    monkeypatch.setattr(attention, "REPEATS", 1)
    result = attention.measure(MODEL, [CLIP])
    assert list(result) == ["64x32x4, 8x4 cells, 16 wide", "64x32x4, 4x2 cells, 32 wide"]
    for row, cells, channels in zip(result.values(), (4 * 4 * 8, 4 * 2 * 4), (16, 32), strict=True):
        expected = {
            "projections": 8 * cells * channels**2,
            "windows": 4 * cells * 8 * channels,
            "full": 4 * cells**2 * channels,
            "64 tokens": 4 * cells * 64 * channels,
            "3,136 tokens": 4 * cells * 3136 * channels,
        }
        for name, operations in expected.items():
            assert row[f"{name}: GFLOP"] == pytest.approx(operations / 1e9), name
        assert row["shifted windows: GFLOP"] == row["windows: GFLOP"]
        assert all(row[f"{name}: seconds"] > 0 for name in ("windows", "shifted windows", "full", "3,136 tokens"))


def test_what_does_not_fit_is_told_and_not_run(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 2**20)
    row = next(iter(attention.measure(MODEL, [CLIP]).values()))
    assert row["64 tokens: seconds"] > 0  # 0.1 MiB
    assert row["3,136 tokens: seconds"] == "not run: 0.0 GiB, 0.0 are free"
    monkeypatch.setattr(limits, "_MOST_ON_CPU", 10**4)
    monkeypatch.setattr(limits, "available_memory", lambda: None)
    row = next(iter(attention.measure(MODEL, [CLIP]).values()))
    assert row["full: seconds"] == "not run: 0.0 TFLOP" and row["full: GFLOP"] > 0
