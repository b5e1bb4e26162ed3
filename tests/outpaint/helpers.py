"""The command in a process of its own, what it prints, and masks to give it."""

import pathlib
import subprocess
import sys

import cv2
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HOLE = (8, 20, 10, 25)  # top, bottom, left, right in frames of 40x32


def lines(done):
    """Exit code, lines of stdout, lines of stderr."""
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def run_process(*arguments):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "m3ddm_jax.outpaint", *map(str, arguments)]
    return lines(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))


def line_of(code, out, err):
    """The one line that the command says when it refuses."""
    assert (code, out) == (2, []) and len(err) == 1, err
    assert err[0].startswith("outpaint: ")
    return err[0]


def draw(path, height, width, *boxes, value=255):
    """A mask image, black but for boxes (top, bottom, left, right)."""
    mask = np.zeros((height, width), np.uint8)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = value
    cv2.imwrite(str(path), mask)
    return path
