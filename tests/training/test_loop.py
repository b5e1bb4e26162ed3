import json
import os
import pathlib
import shutil
import signal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m3ddm_jax.parallel.mesh import make_mesh, put_batch, replicated
from m3ddm_jax.training import loop
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.optim import skip_spikes, skipped_in_a_row
from m3ddm_jax.training.state import create_state, layout_of


@flax.struct.dataclass
class Count:
    step: jax.Array


class Recorder:
    """A trainer of nothing: writes down what the loop asks for, in order.

    stuck: the clips drawn, by number, of which the step says that it has skipped too many.
    """

    def __init__(self, workdir, cadence, start=0, losses=None, stop_after=None, stuck=()):
        self.events, self.drawn, self.stop_after, self.stuck, self.saved = [], 0, stop_after, stuck, None
        self.evaluated = {}
        self.losses = losses or {}
        self.log = loop.MetricsLog(workdir, start_step=start, cadence=cadence, frames_per_step=16)
        self.cadence, self.state = cadence, Count(jnp.int32(start))

    def __next__(self):
        self.drawn += 1
        self.events.append(f"draw {self.drawn}")
        return {"x": np.ones(2), "clip_id": np.array([f"clip-{self.drawn}-{k}" for k in "ab"])}

    def step(self, state, batch):
        assert list(batch) == ["x"]
        number = int(state.step) + 1
        self.events.append(f"step {number}")
        metrics = {"loss": jnp.float32(self.losses.get(number, 0.5))}
        if self.stuck:
            bad = jnp.float32(self.drawn in self.stuck)
            metrics |= {"grad_norm": jnp.float32(2.0), "skipped": bad, "stuck": bad}
        return Count(jnp.int32(number)), metrics

    def save(self, state, step, examples_seen, metrics=None):
        assert state.step == step
        self.events.append(f"save {step} {examples_seen}")
        self.saved = step
        if metrics:
            self.evaluated[step] = metrics

    def wait(self):
        self.events.append("wait")

    def latest_step(self):
        return self.saved

    def restore(self, like):
        assert like.step.shape == ()
        self.events.append(f"restore {self.saved}")
        return Count(jnp.int32(self.saved)), None

    def evaluate(self, state, step):
        self.events.append(f"evaluate {step}")
        metrics = {"validation_psnr": 20.0 + step}
        self.log.note(step, metrics)
        return metrics

    def stop(self, step):
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
                evaluate=self.evaluate,
                stop=self.stop,
            )
        finally:
            self.log.close()


def lines(workdir: pathlib.Path):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_order_evaluate_save_draw_step(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=4, log_every=1, save_every=2, evaluate_every=2))
    assert recorder.run().step == 4
    # fmt: off
    assert recorder.events == [
        "draw 1", "step 1", "draw 2", "step 2", "evaluate 2", "save 2 20",
        "draw 3", "step 3", "draw 4", "step 4", "evaluate 4", "save 4 40",
    ]
    # fmt: on
    trained = [line["step"] for line in lines(tmp_path) if "loss" in line]
    measured = [line for line in lines(tmp_path) if "loss" not in line]
    assert trained == [1, 2, 3, 4]
    assert measured == [{"step": 2, "validation_psnr": 22.0}, {"step": 4, "validation_psnr": 24.0}]
    assert recorder.evaluated == {2: {"validation_psnr": 22.0}, 4: {"validation_psnr": 24.0}}


def test_what_was_evaluated_is_saved(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=4, log_every=1, save_every=9, evaluate_every=3))
    recorder.run()
    assert [event for event in recorder.events if event.startswith(("save", "evaluate"))] == [
        "evaluate 3",
        "save 3 30",
        "save 4 40",
    ]


def test_metrics_are_means_over_the_interval(tmp_path, capsys):
    losses = {1: 1.0, 2: 3.0, 3: 5.0}
    Recorder(tmp_path, loop.Cadence(steps=3, log_every=2, save_every=9, evaluate_every=0), losses=losses).run()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2.0), (3, 5.0)]
    printed = capsys.readouterr().out
    assert (
        "step 2/3" in printed and "loss 2" in printed and "step_seconds" in printed and "frames_per_second" in printed
    )


def test_a_logger_of_ones_own_is_told_all_that_is_logged(tmp_path):
    told = []
    cadence = loop.Cadence(steps=2, log_every=1, save_every=2, evaluate_every=0)
    log = loop.MetricsLog(
        tmp_path, start_step=0, cadence=cadence, frames_per_step=1, on_metrics=lambda *logged: told.append(logged)
    )
    log.add(1, {"loss": 2.0})
    log.note(1, {"validation_psnr": 20.0})
    log.close()
    assert [{"step": step, **metrics} for step, metrics in told] == lines(tmp_path)


def test_every_process_forgets_what_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    cadence = loop.Cadence(steps=1000, log_every=10, save_every=1000, evaluate_every=0)
    log = loop.MetricsLog(tmp_path, start_step=0, cadence=cadence, frames_per_step=1)
    for step in range(1, 96):
        log.add(step, {"loss": 1.0})
    log.close()
    assert len(log._pending) == 5 and not list(tmp_path.iterdir())


def test_the_longest_wait_of_all_processes_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.multihost_utils, "process_allgather", lambda wait: np.stack([wait, 4 * wait]))
    cadence = loop.Cadence(steps=2, log_every=2, save_every=9, evaluate_every=0)
    log = loop.MetricsLog(tmp_path, start_step=0, cadence=cadence, frames_per_step=1)
    for step, wait in ((1, 0.25), (2, 0.75)):
        log.add(step, {"loss": 1.0, "input_wait_seconds": wait})
    log.close()
    assert lines(tmp_path)[0]["input_wait_seconds"] == 2.0


def test_speed_is_that_of_the_whole_interval(tmp_path, monkeypatch):
    """Saving and evaluating take frames per second away, and have their share of the time."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    recorder = Recorder(tmp_path, loop.Cadence(steps=4, log_every=4, save_every=2, evaluate_every=4))

    def taking(function, seconds):
        def call(*arguments):
            now[0] += seconds
            return function(*arguments)

        return call

    recorder.step, recorder.save = taking(recorder.step, 1.0), taking(recorder.save, 3.0)
    recorder.evaluate = taking(recorder.evaluate, 2.0)
    recorder.run()
    (line,) = [line for line in lines(tmp_path) if "loss" in line]
    # 4 updates, a save after the second and an evaluation after the fourth: 9 seconds.
    assert line["frames_per_second"] == pytest.approx(4 * 16 / 9)
    assert line["goodput"] == pytest.approx(4 / 9)
    shares = {"waiting": 0, "saving": 3 / 9, "evaluating": 2 / 9, "compiling": 0}
    assert {name: line[f"goodput/{name}"] for name in shares} == pytest.approx(shares)


def test_a_stop_finishes_the_step_and_saves(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=9, log_every=1, save_every=9, evaluate_every=0), stop_after=3)
    assert recorder.run().step == 3
    assert recorder.events[-2:] == ["step 3", "save 3 30"]
    assert lines(tmp_path)[-1]["step"] == 3


def test_nothing_is_left_to_do(tmp_path):
    recorder = Recorder(tmp_path, loop.Cadence(steps=3, log_every=1, save_every=1, evaluate_every=1), start=3)
    assert recorder.run().step == 3
    assert recorder.events == ["save 3 0"]


def test_a_log_forgets_what_is_trained_again(tmp_path):
    cadence = loop.Cadence(steps=4, log_every=1, save_every=9, evaluate_every=0)
    Recorder(tmp_path, cadence).run()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off as the process died
    Recorder(tmp_path, cadence, start=2, losses={3: 0.25}).run()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 0.5), (2, 0.5), (3, 0.25), (4, 0.5)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_step_and_clips_and_saves_nothing(tmp_path, bad):
    cadence = loop.Cadence(steps=9, log_every=1, save_every=3, evaluate_every=0)
    recorder = Recorder(tmp_path, cadence, losses={3: bad})
    with pytest.raises(FloatingPointError, match=rf"step 3: loss {bad}; clips of its batch: clip-3-a, clip-3-b"):
        recorder.run()
    assert not any(event.startswith("save") for event in recorder.events)  # the save at 3 is due, but not of this


def test_the_last_loss_is_checked_too(tmp_path):
    cadence = loop.Cadence(steps=2, log_every=1, save_every=9, evaluate_every=0)
    with pytest.raises(FloatingPointError, match="step 2"):
        Recorder(tmp_path, cadence, losses={2: np.nan}).run()


def test_sigterm_is_a_request_within_and_deadly_without():
    before = signal.getsignal(signal.SIGTERM)
    with loop.StopRequest() as stop:
        assert not stop(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop(1)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("field", ["steps", "log_every", "save_every"])
def test_a_cadence_of_zero_is_refused(field):
    values = {"steps": 1, "log_every": 1, "save_every": 1, "evaluate_every": 0}
    with pytest.raises(ValueError, match=field):
        loop.Cadence(**values | {field: 0})


def test_a_run_that_is_stuck_goes_back_and_on_with_other_clips(tmp_path, capsys):
    cadence = loop.Cadence(steps=4, log_every=1, save_every=2, evaluate_every=0)
    recorder = Recorder(tmp_path, cadence, stuck={4})
    assert recorder.run().step == 4
    # fmt: off
    assert recorder.events == [
        "draw 1", "step 1", "draw 2", "step 2", "save 2 20", "draw 3", "step 3", "draw 4", "step 4",
        "wait", "restore 2", "draw 5", "step 3", "draw 6", "step 4", "save 4 60",
    ]
    # fmt: on
    assert [(line["step"], line["skipped"]) for line in lines(tmp_path)] == [(k, 0.0) for k in (1, 2, 3, 4)]
    assert not any("stuck" in line for line in lines(tmp_path))
    said = capsys.readouterr().out
    assert "step 4: skipped, loss 0.5, grad_norm 2; clips of its batch: clip-4-a, clip-4-b\n" in said
    assert "step 4: too many updates in a row were skipped; clips of its batch: clip-4-a, clip-4-b; going back" in said


@pytest.mark.parametrize("stuck, last", [({1}, "draw 2"), ({4, 5}, "draw 6")])
def test_a_run_ends_that_could_only_go_back_in_vain(tmp_path, stuck, last):
    cadence = loop.Cadence(steps=9, log_every=1, save_every=2, evaluate_every=0)
    recorder = Recorder(tmp_path, cadence, stuck=stuck)
    with pytest.raises(FloatingPointError, match="too many updates in a row were skipped; clips of its batch: clip-"):
        recorder.run()
    assert [event for event in recorder.events if event.startswith("draw")][-1] == last


class Numbers:
    """Batches of one number each, which is 1; of those in `bad` it is none."""

    def __init__(self, bad, start=0):
        self.bad, self.index = bad, start

    def __next__(self):
        self.index += 1
        return {"x": np.float32([np.nan if self.index in self.bad else self.index]), "clip_id": np.array(["clip"])}


def train_on_numbers(workdir, bad, patience):
    """8 updates that add numbers up, saved after every second one; from the checkpoint that is found."""
    mesh, optimizer = make_mesh(devices=jax.devices()[:1]), skip_spikes(optax.scale(1.0), 5.0)
    state = jax.device_put(
        create_state({"params": {"w": jnp.zeros(1)}}, optimizer, jax.random.key(0)), replicated(mesh)
    )
    checkpoints = Checkpoints(workdir / "checkpoints", keep=9, fixed={}, config={}, mesh=mesh)
    batches = Numbers(bad)
    if checkpoints.latest_step() is not None:
        state, batches.index = checkpoints.restore(layout_of(state))
    cadence = loop.Cadence(steps=8, log_every=1, save_every=2, evaluate_every=0)

    @jax.jit
    def step(state, batch):
        updates, opt_state = optimizer.update({"w": batch["x"]}, state.opt_state)
        in_a_row, norm = skipped_in_a_row(opt_state), jnp.abs(batch["x"][0])
        metrics = {"loss": norm, "grad_norm": norm, "skipped": in_a_row > 0, "stuck": in_a_row >= patience}
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    log = loop.MetricsLog(workdir, start_step=int(state.step), cadence=cadence, frames_per_step=1)
    try:
        return loop.run(
            state,
            step,
            batches,
            lambda batch: put_batch(mesh, batch),
            cadence=cadence,
            checkpoints=checkpoints,
            examples_seen=lambda: batches.index,
            log=log,
            evaluate=None,
            stop=lambda step: False,
        )
    finally:
        log.close()
        checkpoints.close()


def test_a_run_that_went_back_ends_where_it_ends_when_it_is_resumed(tmp_path):
    folder = tmp_path / "checkpoints"
    state = train_on_numbers(tmp_path, bad={6, 7}, patience=2)
    # That the 7th is wrong is known when the 8th is drawn; after 4 updates training goes on with the 9th.
    assert state.params["w"].tolist() == [1 + 2 + 3 + 4 + 9 + 10 + 11 + 12] and state.opt_state.applied == 8
    logged = [(line["step"], line["loss"]) for line in lines(tmp_path)]
    assert logged == list(zip(range(1, 9), [1, 2, 3, 4, 9, 10, 11, 12], strict=True))
    for late in ("6", "8"):
        shutil.rmtree(folder / late)
    again = train_on_numbers(tmp_path, bad={6, 7}, patience=2)
    data = jax.random.key_data
    jax.tree.map(np.testing.assert_array_equal, state.replace(rng=data(state.rng)), again.replace(rng=data(again.rng)))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == logged


def test_what_is_skipped_is_saved_at_the_end_alone(tmp_path, capsys):
    state = train_on_numbers(tmp_path, bad={4, 8}, patience=2)
    assert state.params["w"].tolist() == [1 + 2 + 3 + 5 + 6 + 7] and int(state.step) == 8
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "6", "8"]
    found = {line["step"]: line for line in lines(tmp_path)}
    assert [found[step]["skipped"] for step in (3, 4, 5)] == [0, 1, 0]
    assert "loss" not in found[4] and found[5]["loss"] == 5
    assert "step 4: skipped, loss nan, grad_norm nan; clips of its batch: clip" in capsys.readouterr().out


def test_parts_of_metrics_are_logged_and_not_shown(tmp_path, capsys):
    cadence = loop.Cadence(steps=1, log_every=1, save_every=1, evaluate_every=0)
    log = loop.MetricsLog(tmp_path, start_step=0, cadence=cadence, frames_per_step=1)
    log.add(1, {"grad_norm": 2.0, "grad_norm/conv_in": 1.0})
    log.close()
    (line,) = lines(tmp_path)
    assert line["grad_norm"] == 2.0 and line["grad_norm/conv_in"] == 1.0 and "goodput/saving" in line
    said = capsys.readouterr().out
    assert said.startswith("step 1/1  grad_norm 2  ") and "/" not in said.removeprefix("step 1/1")


def test_damaged_lines_of_a_log_are_set_aside(tmp_path, capsys):
    whole = '{"step": 1, "loss": 0.5}\n'
    path = tmp_path / "metrics.jsonl"
    path.write_text(whole + "[]\n" + "\0" * 9 + "\n" + '{"loss": 1}\n' + '{"step": 2, "loss": 0.25}\n{"step": 3, "lo')
    assert [values["step"] for values in loop.read_metrics(path)] == [1, 2]
    assert "3 damaged lines are left out" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == path.read_bytes()
    path.write_text(whole)
    assert loop.read_metrics(path) == [{"step": 1, "loss": 0.5}] and capsys.readouterr().err == ""
