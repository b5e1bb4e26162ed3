import jax
import pytest

from configs import m3ddm_tiny
from m3ddm_jax.benchmarks import acceptance
from m3ddm_jax.measure.chips import CHIPS, Chip


@pytest.fixture
def quick(monkeypatch):
    """Speeds that are made up, and a small product."""
    monkeypatch.setattr(acceptance, "_SIDE", 64)
    monkeypatch.setattr(acceptance, "forward", lambda config: {"step seconds p50": 1.0, "MFU": 0.5})

    def step(config, steps, profile=""):
        if config.model.attention == "dense":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")
        return {"step seconds p50": 2.0, "MFU": 0.3}

    monkeypatch.setattr(acceptance.training, "measure_on_device", step)


@pytest.fixture
def tiny():
    config = m3ddm_tiny.get_config()
    config.model.update(block_out_channels=(32,), attention_levels=(False,))
    return config


@pytest.mark.usefixtures("quick")
def test_says_what_passed(tiny):
    rows = acceptance.measure(tiny, tiny, attentions=[(130, 77, 8)])
    errors = [row for name, row in rows.items() if name.endswith("error")]
    assert len(errors) == 3 and all(row["passed"] == "yes" and row["found"] >= 0 for row in errors)
    assert rows["forward, MFU"]["passed"] == "yes" and rows["training step, MFU"]["passed"] == "no"
    assert rows["forward with dense attention, MFU"].keys() == {"found", "seconds", "took, s"}
    failed = rows["training step with dense attention, MFU"]
    assert failed["found"] == "failed: RESOURCE_EXHAUSTED: out of memory" and failed["passed"] == "no"
    assert rows["matrix product, TFLOP/s"]["found"] > 0


@pytest.mark.usefixtures("quick")
def test_ends_in_time(tiny, monkeypatch):
    monkeypatch.setattr(acceptance, "SECONDS", 0)
    assert {row["found"] for row in acceptance.measure(tiny, tiny).values()} == {"not run: 0 s are over"}


def test_a_wrong_kernel_does_not_pass(monkeypatch):
    right = acceptance.attention

    def wrong(query, key, value, form="auto"):
        return right(query, key, value, form=form) * (1.1 if form == "auto" else 1)

    monkeypatch.setattr(acceptance, "attention", wrong)
    assert acceptance.attention_error(16, 16, 8) > acceptance._ATTENTION_ERROR


def test_speed_of_a_forward_pass(tiny, monkeypatch):
    monkeypatch.setitem(CHIPS, "cpu", Chip(1e12, 2**30, 1e9))
    found = acceptance.forward(tiny)
    assert found["MFU"] == pytest.approx(found["TFLOP/s a device"]) and found["step seconds p50"] > 0
