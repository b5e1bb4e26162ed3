import json
import os
import pathlib
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from m3ddm_jax.training import loop


class Recorder:
    """A trainer of nothing: writes down what the loop asks for, in order."""

    def __init__(self, workdir, cadence, start=0, losses=None, stop_after=None):
        self.events, self.drawn, self.stop_after = [], 0, stop_after
        self.losses = losses or {}
        self.log = loop.MetricsLog(workdir, start_step=start, cadence=cadence, frames_per_step=16)
        self.cadence, self.state = cadence, SimpleNamespace(step=start)

    def __next__(self):
        self.drawn += 1
        self.events.append(f"draw {self.drawn}")
        return {"x": np.ones(2), "clip_id": np.array([f"clip-{self.drawn}-{k}" for k in "ab"])}

    def step(self, state, batch):
        assert list(batch) == ["x"]
        number = state.step + 1
        self.events.append(f"step {number}")
        return SimpleNamespace(step=number), {"loss": jnp.float32(self.losses.get(number, 0.5))}

    def save(self, state, step, examples_seen):
        assert state.step == step
        self.events.append(f"save {step} {examples_seen}")

    def sample(self, state, step):
        self.events.append(f"sample {step}")
        self.log.note(step, {"validation_psnr": 20.0 + step})

    def stop(self):
        return self.stop_after is not None and self.drawn >= self.stop_after

    def run(self):
        try:
            return loop.run(
                self.state,
                self.step,
                self,
                lambda batch: {"x": batch["x"]},
                cadence=self.cadence,
                checkpoints=self,
                examples_seen=lambda: 10 * self.drawn,
                log=self.log,
                sample=self.sample,
                stop=self.stop,
            )
        finally:
            self.log.close()


def lines(workdir: pathlib.Path):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_order_sample_save_draw_step(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=4, log_every=1, save_every=2, sample_every=2))
    assert recorder.run().step == 4
    # fmt: off
    assert recorder.events == [
        "draw 1", "step 1", "draw 2", "step 2", "sample 2", "save 2 20",
        "draw 3", "step 3", "draw 4", "step 4", "sample 4", "save 4 40",
    ]
    # fmt: on
    trained = [line["step"] for line in lines(tmp_path) if "loss" in line]
    measured = [line for line in lines(tmp_path) if "loss" not in line]
    assert trained == [1, 2, 3, 4]
    assert measured == [{"step": 2, "validation_psnr": 22.0}, {"step": 4, "validation_psnr": 24.0}]


def test_metrics_are_means_over_the_interval(tmp_path, capsys):
    losses = {1: 1.0, 2: 3.0, 3: 5.0}
    Recorder(tmp_path, loop.Cadence(steps=3, log_every=2, save_every=9, sample_every=0), losses=losses).run()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2.0), (3, 5.0)]
    printed = capsys.readouterr().out
    assert (
        "step 2/3" in printed and "loss 2" in printed and "step_seconds" in printed and "frames_per_second" in printed
    )


def test_a_stop_finishes_the_step_and_saves(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=9, log_every=1, save_every=9, sample_every=0), stop_after=3)
    assert recorder.run().step == 3
    assert recorder.events[-2:] == ["step 3", "save 3 30"]
    assert lines(tmp_path)[-1]["step"] == 3


def test_nothing_is_left_to_do(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=3, log_every=1, save_every=1, sample_every=1), start=3)
    assert recorder.run().step == 3
    assert recorder.events == ["save 3 0"]


def test_a_log_forgets_what_is_trained_again(tmp_path):
    cadence = loop.Cadence(steps=4, log_every=1, save_every=9, sample_every=0)
    Recorder(tmp_path, cadence).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off as the process died
    Recorder(tmp_path, cadence, start=2, losses={3: 0.25}).run()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.5)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_step_and_clips_and_saves_nothing(tmp_path, bad):
    cadence = loop.Cadence(steps=9, log_every=1, save_every=3, sample_every=0)
    recorder = Recorder(tmp_path, cadence, losses={3: bad})
    with pytest.raises(FloatingPointError, match=rf"step 3: loss {bad}; clips of its batch: clip-3-a, clip-3-b"):
        recorder.run()
    assert not any(event.startswith("save") for event in recorder.events)  # the save at 3 is due, but not of this


def test_the_last_loss_is_checked_too(tmp_path):
    cadence = loop.Cadence(steps=2, log_every=1, save_every=9, sample_every=0)
    with pytest.raises(FloatingPointError, match="step 2"):
        Recorder(tmp_path, cadence, losses={2: np.nan}).run()


def test_sigterm_is_a_request_within_and_deadly_without():
    before = signal.getsignal(signal.SIGTERM)
    with loop.StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("field", ["steps", "log_every", "save_every"])
def test_a_cadence_of_zero_is_refused(field):
    values = {"steps": 1, "log_every": 1, "save_every": 1, "sample_every": 0}
    with pytest.raises(ValueError, match=field):
        loop.Cadence(**values | {field: 0})
