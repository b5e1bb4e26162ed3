"""The outpaint command as a user runs it."""

import os
import pathlib
import sys
import tempfile
from typing import Any

from m3ddm_jax.measure import memory

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIB = 2**20


def measure(model: str | None) -> dict[str, Any]:
    """The command in a process of its own, on synthetic scenes outpainted to 16:9 as by default, or with a model folder
    of m3ddm, on long scenes in one step: seconds from a cold start, and peak memory."""
    options = [f"--model={model}"] if model else []
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        scene, wide = pathlib.Path(folder, "scene.mp4"), pathlib.Path(folder, "wide.mp4")
        for name, side, frames in [
            ("cold start, 512x512, 16 frames", 512, 16),
            ("256x256, 64 frames", 256, 64),
            ("256x256, 512 frames", 256, 512),
        ]:
            run_module("data.synthetic", scene, f"--size={side}x{side}", f"--frames={frames}")
            limit = ["--steps=1"] if model and frames > 16 else []
            # Programs that were compiled before must not be found again.
            programs = str(pathlib.Path(folder, f"programs-{side}-{frames}"))
            command = ["m3ddm_jax.outpaint", scene, wide, "--aspect=16:9", *options, *limit]
            run = run_module(*command, JAX_COMPILATION_CACHE_DIR=programs)
            result |= {f"{name}: seconds": run.seconds, f"{name}: peak MiB": run.peak_bytes / MIB}
    return result


def run_module(module: str, *arguments, **environment: str) -> memory.ChildRun:
    """Runs one of our entry points in a process of its own, with some of the environment different; raises ValueError
    with its last line where it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    run = memory.run_child(command, cwd=ROOT, env=os.environ | environment)
    if run.returncode:
        raise ValueError(f"{module} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return run
