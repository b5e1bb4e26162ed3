"""Processes that are killed while they write: the old or the new is there as a whole, and nothing else stays."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

# More of them, a quarter for training: M3DDM_JAX_KILLS=50 M3DDM_JAX_SEED=7 pytest -m "" tests/hostile/test_kills.py
KILLS, SEED = int(os.environ.get("M3DDM_JAX_KILLS", 12)), int(os.environ.get("M3DDM_JAX_SEED", 0))
ROOT = pathlib.Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "parallel" / "toy_recipe.py"  # compiles in a second


@pytest.mark.parametrize(
    "what", ["export", "adapt_cache", "precompute", pytest.param("prepare", marks=pytest.mark.slow)]
)
def test_a_kill_while_writing_loses_nothing(tmp_path, what):
    command = [sys.executable, "-m", "tests.hostile.kills", what, tmp_path, str(KILLS), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.slow
def test_a_kill_while_training_loses_nothing(tmp_path):
    """Each run goes on from a checkpoint that is not older than what was reported to be written before the kill."""
    rng, reached, begun = random.Random(SEED), 0, []
    assert train(tmp_path, 4).wait() == 0  # what it compiles is cached for the others
    for number in range(KILLS // 4):
        process = train(tmp_path, 100_000)
        # By turns during the first checkpoints, and once one more is complete.
        awaited = "checkpoint " if number % 2 else "step "
        starts = (re.search(r"from step (\d+)", line) for line in process.stdout)
        begun.append(int(next(filter(None, starts))[1]))
        assert begun[-1] >= reached, f"step {begun[-1]} after {reached} was written"
        killer = threading.Timer(rng.uniform(0, 5), process.send_signal, [signal.SIGKILL])
        for line in process.stdout:
            if line.startswith(awaited) and killer.ident is None:
                killer.start()
            if found := re.match(r"checkpoint (\d+) written", line):
                reached = max(reached, int(found[1]) - 2)  # complete but for its name, which the one before has
        killer.join()
        assert "Traceback" not in process.stderr.read()
        process.wait()
    assert begun == sorted(begun) and begun[-1] > begun[0]
    process = train(tmp_path, 1)
    assert process.wait() == 0, process.stderr.read()
    assert np.load(tmp_path / "model" / "weights.npz").files
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith((".part", ".old", ".lock"))]


def train(workdir, steps):
    command = [sys.executable, TOY, "--config=configs/m3ddm_tiny.py", f"--workdir={workdir}", "--config.recipe=toy"]
    command += [f"--config.train.{name}" for name in (f"steps={steps}", "save_every=2", "evaluate_every=0")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)
