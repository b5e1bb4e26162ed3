"""The Python API: arrays, iterables and files to arrays, iterators and files."""

import doctest
import inspect
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import m3ddm_jax as m
from m3ddm_jax.api import inputs, outpainting
from m3ddm_jax.measure.timing import compile_seconds
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.errors import Damaged

ROOT = pathlib.Path(__file__).resolve().parents[2]
FRAMES = np.random.default_rng(0).integers(0, 256, (10, 32, 40, 3), np.uint8)


def test_importing_takes_no_jax_and_no_time():
    """A fresh process, because this one has imported everything."""
    code = (
        "import sys, time; start = time.perf_counter(); import m3ddm_jax; seconds = time.perf_counter() - start\n"
        "print(seconds, 'jax' in sys.modules, m3ddm_jax.__version__, *dir(m3ddm_jax))\n"
        "from m3ddm_jax import outpaint; assert outpaint is m3ddm_jax.outpaint and callable(outpaint)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, has_jax, version, *names = done.stdout.split()
    assert float(seconds) < 0.2 and has_jax == "False" and version == m.__version__
    assert names == sorted(m.__all__)


def test_every_public_name_is_there():
    assert all(getattr(m, name) is not None for name in m.__all__)
    with pytest.raises(AttributeError, match="no attribute 'outpant'"):
        m.outpant  # noqa: B018


def test_outpaint_stays_a_function_when_its_command_runs(run_module):
    assert run_module("m3ddm_jax.outpaint").returncode == 2
    assert isinstance(m.outpaint, types.FunctionType)


def test_the_function_has_the_arguments_of_the_class():
    function = inspect.signature(m.outpaint).parameters
    made, called = (inspect.signature(f).parameters for f in (m.Outpainter.__init__, m.Outpainter.__call__))
    assert set(function) == {*made, *called} - {"self"}
    assert all(function[name].default == called[name].default for name in called if name != "self")


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(outpainting).failed == 0


@pytest.mark.parametrize(
    "video",
    [FRAMES, list(FRAMES), iter(FRAMES), (frame for frame in FRAMES), FrameSource.from_array(FRAMES), "folder"],
    ids=["array", "list", "iterator", "generator", "source", "folder"],
)
def test_known_pixels_are_exact_whatever_the_frames_come_in(video, tmp_path):
    if isinstance(video, str):
        video = tmp_path / "frames"
        with FrameSink(video, 24, 32, 40) as sink:
            sink.write(FRAMES)
    wide = m.outpaint(video, aspect="16:9", method="blur")
    assert (wide.dtype, wide.shape) == (np.uint8, (10, 32, 56, 3))
    np.testing.assert_array_equal(wide[:, :, 8:48], FRAMES)
    assert (wide[:, :, :8] > 0).any()


def test_a_stream_is_made_while_it_is_read():
    done = []
    stream = m.outpaint(FRAMES, aspect="16:9", method="edge", stream=True, progress=lambda *now: done.append(now))
    first = next(stream)
    assert first.shape == (32, 56, 3) and done == []
    rest = list(stream)
    np.testing.assert_array_equal([first, *rest], m.outpaint(FRAMES, aspect="16:9", method="edge"))
    assert done == [(8, 10), (10, 10)]


def test_a_file_is_written_with_the_rate_that_is_given(tmp_path):
    path = m.outpaint(FRAMES, tmp_path / "a.mkv", pad=(0, 0, 8, 8), method="edge", fps=12.5, codec="ffv1")
    assert path == tmp_path / "a.mkv"
    written = FrameSource(path)
    assert (written.fps, len(written), written.width, written.height) == (12.5, 10, 48, 40)
    again = m.outpaint(str(path), tmp_path / "frames", size=(64, 48), anchor=(0, 1), method="edge")
    np.testing.assert_array_equal(FrameSource(again)[:][:, 8:, :48], written[:])


def test_a_callback_that_raises_ends_the_work_and_leaves_nothing(tmp_path):
    def stop(done, total):
        assert (done, total) == (8, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        m.outpaint(FRAMES, tmp_path / "out.mp4", aspect="16:9", method="edge", progress=stop)
    assert os.listdir(tmp_path) == []


def test_what_a_mask_marks_is_made_and_all_else_the_source(monkeypatch):
    def grey(source, canvas, rng, masks):
        yield np.full((len(source), canvas.height, canvas.width, 3), 77, np.uint8)

    monkeypatch.setattr(outpainting, "make_outpainter", lambda method, **options: grey)
    mask = np.zeros((32, 40), bool)
    mask[8:20, 10:25] = True
    for target, on_canvas in (({"aspect": 1}, mask), ({"aspect": "16:9"}, np.pad(mask, ((0, 0), (8, 8)))), ({}, mask)):
        wide = m.Outpainter("isvi")(FRAMES, mask=on_canvas, **target)
        inside = wide[:, (wide.shape[1] - 32) // 2 :, (wide.shape[2] - 40) // 2 :][:, :32, :40]
        assert (inside[:, mask] == 77).all()
        np.testing.assert_array_equal(inside[:, ~mask], FRAMES[:, ~mask])


def test_isvi_removes_what_a_mask_marks():
    """A white box on a ramp of greys gives way to greys as around it; the rest is exact."""
    ramp = np.broadcast_to(np.linspace(40, 160, 40)[:, None], (1, 32, 40, 3)).astype(np.uint8)
    mask = np.zeros((32, 40), bool)
    mask[8:20, 10:25] = True
    made = m.outpaint(np.where(mask[..., None], np.uint8(255), ramp), mask=mask)
    np.testing.assert_array_equal(made[:, ~mask], ramp[:, ~mask])
    assert np.abs(made.astype(int) - ramp)[:, mask].mean() < 15


@pytest.mark.parametrize(
    ("video", "error", "words"),
    [
        (FRAMES / 255, ValueError, r"`video` must be uint8 \[T, H, W, 3\] in 0..255, found float64 \[10, 32, 40, 3\]"),
        (FRAMES[0], ValueError, r"found uint8 \[32, 40, 3\]"),
        (FRAMES[..., :1], ValueError, r"found uint8 \[10, 32, 40, 1\]"),
        (FRAMES[:0], ValueError, "`video` has no frames"),
        (iter([]), ValueError, "`video` has no frames"),
        ([FRAMES[0], FRAMES[0, :8]], ValueError, r"frame 1 of `video` must be uint8 \[32, 40, 3\] like the first"),
        ([FRAMES[0] / 255], ValueError, r"frame 0 of `video` must be uint8 \[H, W, 3\], found float64"),
        (["a.png"], ValueError, r"frame 0 of `video` must be uint8 \[H, W, 3\]"),
        (3, TypeError, "`video` must be a path, a uint8 array .*, found int"),
        (b"mp4", TypeError, "found bytes"),
        ("nowhere.mp4", ValueError, "there is no file or folder nowhere.mp4"),
    ],
)
def test_what_is_no_video_is_refused(video, error, words):
    with pytest.raises(error, match=words):
        m.outpaint(video, aspect="16:9", method="edge")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"aspct": "16:9"}, TypeError, "there is no argument `aspct`: did you mean `aspect`?"),
        ({"stepz": 3}, TypeError, "`stepz`: did you mean `steps`?"),
        ({"zzz": 3}, TypeError, "there is no argument `zzz`$"),
        ({"method": "magic"}, ValueError, "`method` must be one of lite, m3ddm, .*, found 'magic'"),
        ({"method": "edge", "steps": 3}, ValueError, "`steps` is an option of m3ddm, globalpaint, found `method` edge"),
        ({"method": "m3ddm", "interpolation_model": "x"}, ValueError, "is an option of globalpaint"),
        ({"method": "m3ddm", "steps": "few"}, ValueError, "`steps` must be a whole number above 0, found 'few'"),
        ({"prefer": "best"}, ValueError, "`prefer` must be one of faithful, sharp, found 'best'"),
        ({"seed": -1}, ValueError, "`seed` must be a whole number, 0 or more, found -1"),
        ({"fps": 0}, ValueError, "`fps` must be 0.001 to 100000 frames per second, found 0"),
        ({"codec": "h264"}, ValueError, "`codec` is of a file that is written, and there is no `path`"),
        ({"stream": True, "path": "x.mp4"}, ValueError, "`stream` returns frames and `path` writes them"),
        ({"path": 3}, TypeError, "`path` must be a path, found int"),
        ({"mask": np.eye(32, 40) > 0, "method": "blur"}, ValueError, "`mask` is accepted by in2out, isvi, found"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        m.outpaint(FRAMES, **{"aspect": "16:9", **arguments})


def test_damage_that_only_decoding_shows_is_searched_for(tmp_path, monkeypatch):
    m.outpaint(FRAMES, tmp_path / "in.mp4", pad=(0, 0, 0, 0), method="edge")
    opened = []

    def use(source):
        opened.append(source)
        if len(opened) == 1:
            raise Damaged("frame 3 cannot be decoded")
        return len(source)

    assert inputs.read_file(tmp_path / "in.mp4", use) == 10 and len(opened) == 2
    opened.clear()
    with pytest.raises(Damaged):
        inputs.read_file(tmp_path / "in.mp4", use, strict=True)


def test_a_second_call_of_the_same_size_compiles_nothing(traced):
    """Of the default method; tests/pipelines/test_m3ddm.py has the same of a model."""
    moving = np.stack([np.roll(FRAMES[0, :28, :36], step, axis=1) for step in range(4)])  # a size of this test alone
    options = {"aspect": 2.1, "settings": {"key_frames": 0}}
    first = m.outpaint(moving, **options)
    assert traced
    traced.clear()
    with compile_seconds() as compiled:
        again = m.outpaint(moving, **options)
    assert (traced, compiled) == ([], [])
    np.testing.assert_array_equal(first, again)


def test_a_model_that_changes_is_loaded_anew(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        outpainting, "make_outpainter", lambda *_, **options: made.append(options) or OUTPAINTERS["edge"]()
    )
    outpainting._last_outpainter.cache_clear()
    (tmp_path / "weights").write_text("1")
    for _ in range(2):
        m.outpaint(FRAMES, aspect=2, method="isvi", model=tmp_path, settings={"lines": 64})
    assert len(made) == 1
    os.utime(tmp_path / "weights", ns=(0, 0))
    m.outpaint(FRAMES, aspect=2, method="isvi", model=tmp_path, settings={"lines": 64})
    m.outpaint(FRAMES, aspect=2, method="isvi", model=tmp_path, settings={"lines": 32})
    assert len(made) == 3
    outpainting._last_outpainter.cache_clear()
