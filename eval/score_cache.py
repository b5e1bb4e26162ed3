"""Scores of finished clips on disk, so that a run that was stopped goes on: each beside what it depends on."""

import hashlib
import json
import os
import pathlib
import subprocess
from typing import Any

import numpy as np

from eval.networks import file_sha256
from eval.scores import ClipScores
from m3ddm_jax.files.opening import read_npz
from m3ddm_jax.files.writing import new_file

_CODE = ("eval", "m3ddm_jax")
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def fingerprint(**parts: Any) -> str:
    """SHA-256 of plain values by name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def clip_sha256(path: pathlib.Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return fingerprint(files=[(file.relative_to(path).as_posix(), file_sha256(file)) for file in files])


def code_sha256() -> str:
    """SHA-256 of the code that scores come from."""
    return fingerprint(code=[clip_sha256(path) for room in _CODE for path in sorted((_ROOT / room).rglob("*.py"))])


class ScoreCache:
    """ClipScores in files of a folder, by name, valid as long as their key is the same; no folder keeps nothing.

    A file is whole or not there; one that was damaged all the same counts as not there.
    """

    def __init__(self, folder: str | os.PathLike | None):
        self._folder = folder and pathlib.Path(folder)

    def load(self, name: str, key: str) -> ClipScores | None:
        if self._folder is None:
            return None
        try:
            arrays = read_npz(self._folder / f"{name}.npz")  # zip checks each by its CRC
            if str(arrays.pop("key")) != key:
                return None
            size, picture = tuple(arrays.pop("size").tolist()), arrays.pop("picture")
            groups = {group: {} for group in ("per_frame", "motion", "features")}
            for entry, value in arrays.items():
                group, metric = entry.split("/")
                groups[group][metric] = float(value) if group == "motion" else value
            return ClipScores(**groups, size=size, picture=picture)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def save(self, name: str, key: str, scores: ClipScores) -> None:
        if self._folder is None:
            return
        self._folder.mkdir(exist_ok=True)
        flat = {"key": np.array(key), "size": np.array(scores.size), "picture": scores.picture}
        for group in ("per_frame", "motion", "features"):
            flat |= {f"{group}/{metric}": value for metric, value in getattr(scores, group).items()}
        with new_file(self._folder / f"{name}.npz") as part, part.open("wb") as file:
            np.savez(file, **flat)


def code_commit() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout that this code lies in; None where it lies in none, or git is missing."""
    top, commit = _git("rev-parse", "--show-toplevel"), _git("rev-parse", "HEAD")
    if not commit or pathlib.Path(top).resolve() != _ROOT:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
