"""What the command never does: overwrite what is not its own, or leave something half-written."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from m3ddm_jax.video import FrameSource
from tests.outpaint.helpers import ROOT


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "out.mp4"), (signal.SIGHUP, "frames")])
def test_a_signal_leaves_nothing(folder, tmp_path, number, name):
    """The command is stopped while it writes."""
    code = f"""
import os, runpy
from m3ddm_jax.video import FrameSink
write = FrameSink.write
FrameSink.write = lambda *arguments: (write(*arguments), os.kill(os.getpid(), {number.value}))
runpy.run_module("m3ddm_jax.outpaint", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", code, folder / "in.mp4", tmp_path / name, "--aspect=16:9", "--method=edge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number and done.stderr == f"outpaint: ended by {number.name}\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("preview", ["in.mp4", "link.mp4", "hard.mp4"])
def test_a_preview_is_no_input(refused, folder, tmp_path, preview):
    shutil.copy(folder / "in.mp4", tmp_path / "in.mp4")
    (tmp_path / "link.mp4").symlink_to("in.mp4")
    os.link(tmp_path / "in.mp4", tmp_path / "hard.mp4")
    arguments = ["--aspect=16:9", "--method=edge", f"--preview={tmp_path / preview}"]
    assert "the preview" in refused(tmp_path / "in.mp4", tmp_path / "out.mp4", *arguments)
    assert (tmp_path / "in.mp4").read_bytes() == (folder / "in.mp4").read_bytes()


def test_a_folder_of_one_s_own_frames_is_never_replaced(refused, call, folder, tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("000000.png", "000001.png"):
        shutil.copy(folder / "frames" / name, tmp_path / "d")
    arguments = ["--aspect=16:9", "--method=edge"]
    assert "which lies in it" in refused(tmp_path / "d" / "000000.png", tmp_path / "d", *arguments)
    assert "delete this one" in refused(folder / "in.mp4", tmp_path / "d", *arguments)
    assert len(os.listdir(tmp_path / "d")) == 2
    for _ in range(2):
        assert call(folder / "in.mp4", tmp_path / "out", *arguments)[0] == 0
    assert len(FrameSource(tmp_path / "out")) == 6 and sorted(os.listdir(tmp_path)) == ["d", "out"]


def test_a_link_to_a_folder_is_written_through(call, folder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert call(folder / "in.mp4", tmp_path / "link", "--aspect=16:9", "--method=edge")[0] == 0
    assert (tmp_path / "link").is_symlink() and len(FrameSource(tmp_path / "real")) == 6


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="/dev/full is not here: nothing is always full")
def test_a_full_disk_behind_stdout_is_no_failure(folder, tmp_path):
    command = [sys.executable, "-m", "m3ddm_jax.outpaint", folder / "in.mp4", tmp_path / "out", "--aspect=16:9"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--method=edge"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "") and len(FrameSource(tmp_path / "out")) == 6
