"""Damaged files of every kind: no traceback, no crash, no hang, no partial output, bounded memory."""

import json
import os
import pathlib
import select
import subprocess
import sys

SECONDS, MEGABYTES = 20, 1000
# More of them, with other seeds: M3DDM_JAX_MUTATIONS=2000 M3DDM_JAX_SEED=7 pytest tests/hostile/test_mutations.py
COUNT, SEED = int(os.environ.get("M3DDM_JAX_MUTATIONS", 220)), int(os.environ.get("M3DDM_JAX_SEED", 0))
ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = (
    *("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "gif", "y4m", "png", "jpg", "webp", "bmp", "mask"),
    *("model", "pipeline", "latents", "shards", "scores", "checkpoint", "metrics", "torchscript"),
)


class Worker:
    """The process that reads; it is started anew where it died, hung or grew."""

    def __init__(self):
        self._process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def read(self, kind, seed):
        """What was wrong with one damaged file, or None."""
        if self._process is None:
            command = [sys.executable, "-m", "tests.hostile.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
            self._ask("metrics", 0, 120)  # to be timed from here on
        answer = self._ask(kind, seed, SECONDS)
        if answer is None:
            died = self._process.poll()
            self._end()
            return f"the process died: {died}" if died is not None else f"no answer in {SECONDS} s"
        if answer["megabytes"] > MEGABYTES:
            self._end()
            return f"{answer['megabytes']} MB"
        return answer["found"]

    def _ask(self, kind, seed, seconds):
        try:
            self._process.stdin.write(f"{kind} {seed}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._process.wait()
            return None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
        return json.loads(line) if line else None

    def _end(self):
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def test_damaged_files_are_refused_or_read():
    findings = {}
    with Worker() as worker:
        for number in range(COUNT):
            kind, seed = KINDS[number % len(KINDS)], SEED * 1_000_000 + number
            if found := worker.read(kind, seed):
                findings[f"{kind} {seed}"] = found
    assert not findings, "\n".join(f"{name}: {found}" for name, found in findings.items())
