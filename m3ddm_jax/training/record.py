"""What a run consisted of: its config, the commit of the code, versions and devices, a line for each start."""

import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

from m3ddm_jax.files.writing import write_file
from m3ddm_jax.training.checkpoint import versions

STARTS = "starts.jsonl"
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def note_start(workdir: pathlib.Path, step: int, config: dict[str, Any]) -> None:
    """Append a line to WORKDIR/starts.jsonl; from the first process alone."""
    device = jax.devices()[0]
    start = {
        "step": step,
        "commit": code_commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "processes": jax.process_count(),
        "config": config,
    }
    path = workdir / STARTS
    before = path.read_text() if path.exists() else ""
    write_file(path, before + json.dumps(start) + "\n")


def code_commit() -> str | None:
    """The commit of this project's checkout, with "+" where files differ from it; None where it is no checkout."""
    commit = _git("rev-parse", "HEAD")
    if commit is None or _git("rev-parse", "--show-toplevel") != str(_ROOT):
        return None
    return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
