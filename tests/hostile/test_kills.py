"""Processes that are killed while they write: the old or the new is there as a whole, and nothing else stays."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from m3ddm_jax.weights import load_model

# More of them, at other moments: M3DDM_JAX_KILLS=50 M3DDM_JAX_SEED=7 pytest -m "" tests/hostile/test_kills.py
KILLS, SEED = int(os.environ.get("M3DDM_JAX_KILLS", 12)), int(os.environ.get("M3DDM_JAX_SEED", 0))
ROOT = pathlib.Path(__file__).resolve().parents[2]


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
    """Each run goes on from a checkpoint that is not older than the newest that was reported before the kill."""
    steps, rng, reached, begun = 100_000, random.Random(SEED), 0, []
    command = [sys.executable, "-m", "m3ddm_jax.train", "--config=configs/test.py", f"--workdir={tmp_path}"]
    command += [f"--config.train.steps={steps}", "--config.train.save_every=2", "--config.train.sample_every=0"]
    for number in range(KILLS + 1):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        first = process.stdout.readline()
        assert "parameters on" in first, first + process.communicate()[1][-2000:]
        start = int(re.search(r"from step (\d+)", first)[1])
        begun.append(start)
        assert start >= reached, f"step {start} after a kill at {reached}"
        deadline = time.monotonic() + rng.uniform(0, 4)
        os.set_blocking(process.stdout.fileno(), False)
        while time.monotonic() < deadline:
            time.sleep(0.02)
            line = process.stdout.readline()
            if found := re.match(r"checkpoint (\d+) written", line):
                # What it says is complete but for its name; the one before has that.
                reached = max(reached, int(found[1]) - 2)
        last = number == KILLS
        process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
        _, errors = process.communicate()
        assert "Traceback" not in errors, errors[-2000:]
    assert process.returncode == 0 and begun == sorted(begun) and begun[-1] > 0
    load_model(tmp_path / "model")
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith((".part", ".old", ".lock"))]
