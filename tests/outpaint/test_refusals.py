"""What the command refuses, in one line and with nothing written."""

import os
import resource

import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource
from tests.outpaint.helpers import HOLE, draw


def bad_inputs(folder):
    """name -> the words that must be told."""
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all\n" * 40)
    (folder / "cut.mp4").write_bytes((folder / "in.mp4").read_bytes()[:-800])
    (folder / "no_images").mkdir()
    with av.open(str(folder / "zero.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with FrameSink(folder / "changing", 24, 32, 40) as sink:
        sink.write(FrameSource(folder / "frames")[:])
    with FrameSink(folder / "other", 24, 32, 32) as sink:
        sink.write(np.zeros((1, 32, 32, 3), np.uint8))
    (folder / "other" / "000000.png").replace(folder / "changing" / "000003.png")
    return {
        "missing.mp4": "no file or folder",
        "empty.mp4": "no readable video",
        "text.mp4": "no readable video",
        "zero.mp4": "no video stream",
        "no_images": "no images",
        "changing": "must all be 40x32",
    }


def test_bad_inputs_are_refused(refused, folder, tmp_path):
    for name, words in bad_inputs(folder).items():
        line = refused(folder / name, tmp_path / "out.mp4", "--aspect=16:9", "--method=edge")
        assert name in line and words in line
        assert os.listdir(tmp_path) == []


def test_the_command_refuses_in_one_line(refused, folder, tmp_path):
    out = tmp_path / "out.mp4"
    assert "one of --aspect" in refused(folder / "in.mp4", out)
    assert "even" in refused(folder / "in.mp4", out, "--size=41x33", "--method=edge")
    assert "IN OUT expected" in refused(folder / "in.mp4")
    assert "--steps" in refused(folder / "in.mp4", out, "--aspect=1:1", "--steps=few")
    assert "fps" in refused(folder / "in.mp4", out, "--aspect=1:1", "--fps=-1")
    line = refused(folder / "in.mp4", out, "--aspect=1:1", "--method=globalpaint", "--model=key")
    assert "globalpaint needs --interpolation-model, or --sequential" in line
    mask = draw(tmp_path / "mask.png", 32, 40)
    assert "white nowhere" in refused(folder / "in.mp4", out, f"--mask={mask}", "--method=isvi")
    draw(mask, 32, 40, HOLE)
    assert "--mask is accepted by in2out, isvi, found --method blur" in refused(
        folder / "in.mp4", out, f"--mask={mask}", "--method=blur"
    )
    mask.unlink()
    assert "nosuchflag" in refused(folder / "in.mp4", out, "--nosuchflag=1")
    assert str(tmp_path / "nomodel") in refused(
        folder / "in.mp4", out, "--aspect=1:1", f"--model={tmp_path / 'nomodel'}"
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.gif", "out"])
def test_a_full_disk_leaves_nothing(refused, folder, tmp_path, name):
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        line = refused(folder / "frames", tmp_path / name, "--size=64x64", "--method=edge")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot write {tmp_path / name}" in line
    assert os.listdir(tmp_path) == []


def test_pipes_are_refused(refused, folder, tmp_path):
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames" / "0.png")
    os.mkfifo(tmp_path / "in.mp4")
    for source in (tmp_path / "in.mp4", tmp_path / "frames"):
        refused(source, tmp_path / "out", "--aspect=16:9", "--method=edge")
