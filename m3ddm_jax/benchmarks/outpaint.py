"""The outpaint command as a user runs it."""

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
            run = run_module("m3ddm_jax.outpaint", scene, wide, "--aspect=16:9", *options, *limit)
            result |= {f"{name}: seconds": run.seconds, f"{name}: peak MiB": run.peak_bytes / MIB}
    return result


def run_module(module: str, *arguments) -> memory.ChildRun:
    """Runs one of our entry points in a process of its own; raises ValueError with its last line where it fails."""
    run = memory.run_child([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT)
    if run.returncode:
        raise ValueError(f"{module} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return run
