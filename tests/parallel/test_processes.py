"""Processes that train together: two of four CPU devices each, and what one process can tell of itself."""

import json
import os
import pathlib
import re
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import m3ddm_tiny
from m3ddm_jax import train as trainer
from m3ddm_jax.parallel import processes
from m3ddm_jax.recipes import RECIPES

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "parallel" / "toy_recipe.py"
# State that lies on both processes.
SMALL = {"recipe": "toy", "mesh.fsdp": 8, "train.learning_rate": 0.01, "data.buckets": ((16, 16),)}


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def begin(command):
    """A Python process of four CPU devices; both kinds of output in one stream."""
    environment = {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4"),
    }
    command, streams = [sys.executable, "-u", *command], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **streams)


def train_command(workdir, coordinator, process, steps, *then):
    command = [TOY, "--config=configs/m3ddm_tiny.py", f"--workdir={workdir}", *(f"--then={folder}" for folder in then)]
    command += [f"--coordinator={coordinator}", "--num_processes=2", f"--process_id={process}"]
    return command + [f"--config.{name}={value}" for name, value in {**SMALL, "train.steps": steps}.items()]


def end(started):
    """(exit status, what it said) of each."""
    said = [process.communicate(timeout=300)[0] for process in started]
    return list(zip([process.returncode for process in started], said, strict=True))


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def test_two_processes_stop_together_go_on_and_end_where_one_does(tmp_path, monkeypatch):
    stopped, straight, alone = (tmp_path / name for name in ("stopped", "straight", "alone"))
    coordinator = f"localhost:{free_port()}"
    pair = [begin(train_command(stopped, coordinator, k, 10**6)) for k in range(2)]
    for line in pair[0].stdout:
        if line.startswith("step 1/"):
            break
    pair[1].send_signal(signal.SIGTERM)  # the one that does not speak
    ended = end(pair)
    assert [status for status, _ in ended] == [0, 0], ended
    [step] = saved_steps(stopped)
    assert list(losses(stopped)) == list(range(1, step + 1))

    coordinator, steps = f"localhost:{free_port()}", step + 2
    pair = [begin(train_command(stopped, coordinator, k, steps, straight)) for k in range(2)]
    ended = end(pair)
    assert [status for status, _ in ended] == [0, 0], ended
    assert losses(stopped) == losses(straight) and len(losses(straight)) == steps
    made = {folder: np.load(folder / "model" / "weights.npz") for folder in (stopped, straight)}
    for name in ("in", "out", "bias"):
        np.testing.assert_array_equal(made[stopped][name], made[straight][name])

    monkeypatch.setitem(RECIPES, "toy", runpy.run_path(str(TOY))["ToyRecipe"])
    config = m3ddm_tiny.get_config()
    config.update_from_flattened_dict(SMALL | {"train.steps": steps})
    state = trainer.train(config, alone)
    # Sums over devices come in another order between processes.
    np.testing.assert_allclose(list(losses(alone).values()), list(losses(straight).values()), rtol=1e-5)
    for name, value in state.ema_params.items():
        np.testing.assert_allclose(value, made[straight][name], atol=1e-5, err_msg=name)


def told(host, failure=None, **hashes):
    return {"host": host, "failure": failure, "hashes": hashes}


def test_what_differs_is_named_with_its_processes():
    same = {"config": "a", "code": "b", "data": "c"}
    three = [told("one", **same), told("two", **same | {"data": "d"}), told("three", **same)]
    assert processes.disagreement([three[0], three[2]]) is None
    assert processes.disagreement(three) == "the processes disagree: data differs on 1 (two)"
    others = [told(f"host{k}", **same | {"code": str(k)}) for k in range(6)]
    assert processes.disagreement([told("one", **same)] * 2 + others) == (
        "the processes disagree: code differs on 2 (host0), 3 (host1), 4 (host2), 5 (host3) and 2 more"
    )
    failed = [told("one", **same), told("two", "clips is not a folder"), told("three", "nor here")]
    assert processes.disagreement(failed) == "process 1 (two): clips is not a folder; others fail too: 2 (three)"


AGREE = """
import sys
from m3ddm_jax import cli
from m3ddm_jax.parallel import processes
def main(coordinator, process):
    processes.start(coordinator, 2, int(process), seconds=60)
    try:
        with processes.agreement():
            if process == "1":
                raise ValueError("there are no clips")
    except processes.Disagreement as error:
        print(error)
    with processes.agreement() as same:
        same["config"], same["data"] = "alike", "longer" * int(process)
cli.call("train", main, ("coordinator", "process"), sys.argv[1:])
"""


def test_processes_that_disagree_all_end_with_one_line():
    coordinator, host = f"localhost:{free_port()}", socket.gethostname()
    for status, lines in end([begin(["-c", AGREE, coordinator, str(k)]) for k in range(2)]):
        assert status == 2, lines
        assert [line for line in lines.splitlines() if not line.startswith("[Gloo]")] == [
            f"process 1 ({host}): there are no clips",
            f"train: the processes disagree: data differs on 1 ({host})",
        ]


RESTORE = """
import pathlib, sys
import jax
import optax
from jax.experimental import multihost_utils
from m3ddm_jax import cli
from m3ddm_jax.parallel import processes
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.training.checkpoint import Checkpoints
from m3ddm_jax.training.state import abstract_state, init_state
def init(key):
    return {"params": {"w": jax.random.normal(key, (64, 64))}}
def main(coordinator, process, folder):
    processes.start(coordinator, 2, int(process), seconds=60)
    mesh, optimizer, rng = make_mesh(fsdp=8), optax.sgd(0.1), jax.random.key(0)
    abstract = abstract_state(init, optimizer, rng, mesh)
    state = init_state(init, optimizer, rng, abstract)
    def open_checkpoints():
        return Checkpoints(folder, keep=4, fixed={}, config={}, mesh=mesh)
    checkpoints = open_checkpoints()
    for step in (1, 2, 3):
        checkpoints.save(state, step, examples_seen=10 * step)
    checkpoints.close()
    if process == "0":
        largest = max(pathlib.Path(folder, "3", "state").rglob("*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-1])
        pathlib.Path(folder, "2", "checksums.json").write_text("[")
    multihost_utils.sync_global_devices("damaged")
    checkpoints = open_checkpoints()
    restored, seen = checkpoints.restore(abstract)
    same = jax.jit(lambda a, b: (a == b).all())(restored.params["w"], state.params["w"])
    print("restored", seen, bool(same), flush=True)
    checkpoints.save(restored, 2, examples_seen=20)
    checkpoints.close()
cli.call("train", main, ("coordinator", "process", "folder"), sys.argv[1:])
"""


@pytest.mark.slow
def test_processes_go_back_to_the_same_checkpoint_where_newer_ones_are_damaged(tmp_path):
    coordinator, folder = f"localhost:{free_port()}", tmp_path / "checkpoints"
    ended = end([begin(["-c", RESTORE, coordinator, str(k), folder]) for k in range(2)])
    for status, said in ended:
        assert status == 0 and "restored 10 True" in said, said
    lines = [re.findall(r"^checkpoint (\d) is damaged", said, flags=re.M) for _, said in ended]
    assert lines == [["3", "2"], []], "the first process tells"
    assert saved_steps(tmp_path) == [1, 2]
    aside = {path.name.partition("-")[0] for path in (tmp_path / "checkpoints.damaged").iterdir()}
    assert aside == {"2", "3"}


def test_one_that_waits_in_vain_ends_with_a_line():
    script = "import sys; from m3ddm_jax.parallel import processes; processes.start(sys.argv[1], 2, 0, seconds=1)"
    coordinator = f"localhost:{free_port()}"
    [(status, said)] = end([begin(["-c", script, coordinator])])
    assert status == 2 and said == f"train: after 1 s not all processes of the run have met at {coordinator}\n"


def test_a_deadline_that_is_extended_in_time_does_nothing(monkeypatch):
    ended = []
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    monkeypatch.setattr(processes.faulthandler, "dump_traceback", lambda **_: ended.append("traces"))
    with processes.Deadline(0.5, "late", traces=True) as deadline:
        for _ in range(4):
            time.sleep(0.2)
            deadline.extend()
        assert not ended
        time.sleep(1)
        assert ended == ["traces", 2]
    with processes.Deadline(0.1, "late"):
        pass
    time.sleep(0.3)
    assert ended == ["traces", 2]


def test_what_says_who_the_others_are_must_be_whole():
    with pytest.raises(ValueError, match="go together: found \\('here:1', 2, None\\)"):
        processes.start("here:1", 2)
    with pytest.raises(ValueError, match="cannot meet where the environment says"):
        processes.start()


def test_fingerprints_tell_configs_and_files_apart(tmp_path):
    config = m3ddm_tiny.get_config()
    config.data.sources = ({"kind": "videos", "path": str(tmp_path), "weight": 1.0},)
    (tmp_path / "a.mp4").write_bytes(b"1")
    first = trainer.fingerprints(config, {})
    assert trainer.fingerprints(config, {}) == first
    (tmp_path / "b.mp4").write_bytes(b"1")
    second = trainer.fingerprints(config, {"model": 1})
    assert {name for name in first if first[name] != second[name]} == {"config", "data"}


def test_what_fails_in_one_of_several_ends_it_at_once(monkeypatch, capsys):
    def fail(error):
        with processes.failing_at_once():
            raise error

    with pytest.raises(OSError):  # of a single process
        fail(OSError("the disk is full"))
    ended = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.os, "_exit", ended.append)
    fail(OSError("the disk\nis full"))
    assert ended == [2] and capsys.readouterr().err == "train: process 0: the disk is full\n"
    fail(jax.errors.JaxRuntimeError("Connection closed by peer"))
    assert capsys.readouterr().err == "train: process 0: is another gone? Connection closed by peer\n"
    fail(KeyError("surprise"))
    assert "Traceback" in capsys.readouterr().err and len(ended) == 3
    for error in (processes.Disagreement("data differs"), FloatingPointError("loss nan")):
        with pytest.raises(type(error)):  # all raise it, and end in order
            fail(error)
