import jax
import pytest

from configs import m3ddm_tiny as miniature
from m3ddm_jax.benchmarks import limits, models
from m3ddm_jax.benchmarks.report import table
from m3ddm_jax.models.e2fgvi import E2FGVI

TINY = E2FGVI(width=4, flow_width=4, hidden=8, depth=1, num_heads=2, window=(2, 2), ffn_channels=1, deform_groups=2)
COLUMNS = [
    "parameters",
    "window",
    "TFLOP a forward",
    "forwards a window",
    "TFLOP a window",
    "peak GiB",
    "seconds a window",
]


def denoiser():
    config = miniature.get_config()
    config.sample.update(solver="ddim", steps=3, guidance_local=2.0, guidance_global=4.0, guidance_interval=(0.0, 1.0))
    return models.denoiser(config)


def test_a_method_is_a_row(monkeypatch):
    monkeypatch.setattr(models, "REPEATS", 1)
    rows = models.measure({"denoiser": denoiser})
    row = rows["denoiser"]
    assert list(row) == COLUMNS and row["window"] == "2 of 64x64" and row["forwards a window"] == 3 * 3
    assert row["TFLOP a window"] == pytest.approx(9 * row["TFLOP a forward"]) and row["TFLOP a forward"] > 0
    # Weights are a part of it.
    assert row["peak GiB"] > 4 * row["parameters"] / limits.GIB and row["seconds a window"] > 0
    assert len(table(rows).splitlines()) == 3


def test_e2fgvi_makes_the_local_frames_of_a_window():
    window, passes, forward, arguments = models.e2fgvi(TINY, 24, 48)
    made, _ = jax.eval_shape(forward, *arguments)
    assert made.shape == (1, 11, 24, 48, 3) and window == "11 of 48x24, 8 references" and passes == 1


def test_what_is_not_run_is_still_counted(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda: 2**20)
    row = models.measure({"denoiser": denoiser})["denoiser"]
    assert row["seconds a window"].startswith("not run: 0.0 GiB") and row["TFLOP a window"] > 0 and row["peak GiB"] > 0


def test_the_methods_are_those_of_the_project():
    """Those that are quick to trace; the others differ in widths and switches."""
    assert {name.partition(",")[0].partition(" ")[0] for name in models.METHODS} == {
        "M3DDM",
        "GlobalPaint",
        "E2FGVI",
        "ISVI",
    }
    window, passes, _, (variables, frames) = models.METHODS["E2FGVI"]()
    assert frames.shape == (1, 19, 240, 432, 3) and passes == 1 and window == "11 of 432x240, 8 references"
    window, passes, *_ = models.METHODS["M3DDM, embedded"]()
    assert (window, passes) == ("8 of 256x256", 1)
    window, passes, *_ = models.METHODS["GlobalPaint, miniature"]()
    # Guidance takes a second branch at the 3 of 4 noise levels that are not below 0.4.
    assert (window, passes) == ("4 of 64x64", 4 + 3)
    windows = {"RAFT": "2 of 432x240", "IGFC": "3 flows of 432x240", "ASFN": "1 of 432x240", "DeepFill": "1 of 432x240"}
    for name, expected in windows.items():
        window, _, forward, arguments = models.METHODS[f"ISVI, {name}"]()
        assert window == expected
        jax.eval_shape(forward, *arguments)
