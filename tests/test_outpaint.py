"""The command as users call it, with the outpainters that need no model."""

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from m3ddm_jax import outpaint as outpaint_module
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.method_flags import make_outpainter
from m3ddm_jax.outpaint import default_method, outpaint, place_masks, plan_targets
from m3ddm_jax.pipelines.base import OUTPAINTERS, MaskOptions, Method
from m3ddm_jax.video import FrameSink, FrameSource, MaskSource

ROOT = pathlib.Path(__file__).resolve().parents[1]


def lines(done):
    """Exit code, lines of stdout, lines of stderr."""
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def run_process(*arguments):
    """Runs the command in a process of its own."""
    command = [sys.executable, "-m", "m3ddm_jax.outpaint", *map(str, arguments)]
    return lines(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))


@pytest.fixture
def call(run_module):
    """Function (arguments): runs the command here."""
    return lambda *arguments: lines(run_module("m3ddm_jax.outpaint", *arguments))


def line_of(code, out, err):
    """The one line that the command says when it refuses."""
    assert (code, out) == (2, []) and len(err) == 1, err
    assert err[0].startswith("outpaint: ")
    return err[0]


@pytest.fixture
def refused(call):
    """Function (arguments): the one line that the command says when it refuses."""
    return lambda *arguments: line_of(*call(*arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """in.mp4 and frames/: 6 frames of 40x32 at 10 fps."""
    folder = tmp_path_factory.mktemp("inputs")
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 40, 3), np.uint8)
    for name in ("in.mp4", "frames"):
        with FrameSink(folder / name, 10, 32, 40) as sink:
            sink.write(frames)
    return folder


def test_a_process_of_its_own_says_one_line_whatever_comes(folder, tmp_path):
    code, out, err = run_process(folder / "in.mp4", tmp_path / "out", "--aspect=16:9", "--method=mosaic")
    assert (code, len(out), err) == (0, 1, [])
    assert "even" in line_of(*run_process(folder / "in.mp4", tmp_path / "other", "--size=41x33", "--method=edge"))
    (tmp_path / "cut.mp4").write_bytes((folder / "in.mp4").read_bytes()[:-800])
    line = line_of(*run_process(tmp_path / "cut.mp4", tmp_path / "other", "--aspect=16:9", "--method=edge", "--strict"))
    assert "breaks off" in line and sorted(os.listdir(tmp_path)) == ["cut.mp4", "out"]
    code, _, err = run_process(tmp_path / "cut.mp4", tmp_path / "other", "--aspect=16:9", "--method=edge")
    found = len(FrameSource(tmp_path / "other"))
    assert code == 0 and len(err) == 1 and f"{found} frames came, at least 6 are expected" in err[0] and 0 < found < 6


@pytest.mark.parametrize("method", ["edge", "blur", "telea", "mosaic"])
@pytest.mark.parametrize("name", ["in.mp4", "frames"])
def test_known_pixels_are_exact(call, folder, tmp_path, method, name):
    code, out, err = call(folder / name, tmp_path / "out", "--aspect=16:9", f"--method={method}")
    assert code == 0 and err == []
    rate = "10 fps" if name == "in.mp4" else "24 fps"
    assert len(out) == 1 and all(word in out[0] for word in (str(tmp_path / "out"), "56x32", "6 frames", rate, " s"))
    written = FrameSource(tmp_path / "out")[:]
    canvas = Canvas.from_aspect(32, 40, 16 / 9)
    np.testing.assert_array_equal(written[:, *canvas.box], FrameSource(folder / name)[:])
    assert os.listdir(tmp_path) == ["out"]


def test_several_aspects_write_a_file_each(call, folder, tmp_path):
    code, out, err = call(folder / "in.mp4", tmp_path / "out.mkv", "--aspect=16:9,9:16,1:1", "--method=edge")
    assert code == 0 and err == [] and len(out) == 3
    sizes = {p.name: (FrameSource(p).width, FrameSource(p).height) for p in tmp_path.iterdir()}
    assert sizes == {"out_16x9.mkv": (56, 32), "out_9x16.mkv": (40, 72), "out_1x1.mkv": (40, 40)}
    assert all(FrameSource(path).fps == 10 and len(FrameSource(path)) == 6 for path in tmp_path.iterdir())


def test_pad_anchor_and_fps(call, folder, tmp_path):
    assert call(folder / "frames", tmp_path / "a", "--pad=2,4,6,0", "--method=edge")[0] == 0
    assert call(folder / "frames", tmp_path / "b", "--size=50x40", "--anchor=1,0.25", "--method=edge")[0] == 0
    assert call(folder / "frames", tmp_path / "c.mp4", "--aspect=1:1", "--fps=12.5", "--method=edge")[0] == 0
    source = FrameSource(folder / "frames")[:]
    np.testing.assert_array_equal(FrameSource(tmp_path / "a")[:][:, 4:36, 2:42], source)
    np.testing.assert_array_equal(FrameSource(tmp_path / "b")[:][:, 2:34, 10:50], source)
    assert FrameSource(tmp_path / "c.mp4").fps == 12.5


def test_sound_that_is_converted_or_lost_is_reported(call, folder, tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        video, sound = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=48000, layout="mono")
        video.height = video.width = 32
        video.pix_fmt = "yuv420p"
        for frame in np.zeros((10, 32, 32, 3), np.uint8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        samples.sample_rate = 48000
        container.mux([*video.encode(None), *sound.encode(samples), *sound.encode(None)])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.webm", "--aspect=16:9", "--method=edge")
    assert (code, len(out), err) == (0, 1, ["outpaint: out.webm: converted: audio 1 (aac) to opus"])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.gif", "--aspect=16:9", "--method=edge")
    assert (code, len(out), err) == (0, 1, ["outpaint: out.gif: left out: sound"])
    code, out, err = call(tmp_path / "sound.mkv", tmp_path / "out.mp4", "--aspect=16:9", "--method=edge")
    assert (code, len(out), len(err)) == (0, 1, 0)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "out.mp4"), (signal.SIGHUP, "frames")])
def test_signals_leave_nothing(folder, tmp_path, number, name):
    """The command is stopped while it writes."""
    code = (
        "import os, sys\n"
        "from m3ddm_jax import outpaint, cli\n"
        "from m3ddm_jax.video import FrameSink\n"
        "write = FrameSink.write\n"
        f"FrameSink.write = lambda *given: (write(*given), os.kill(os.getpid(), {int(number)}))\n"
        "outpaint._define_flags()\n"
        "cli.run('outpaint', outpaint.main, 'IN', 'OUT')\n"
    )
    arguments = [folder / "in.mp4", tmp_path / name, "--aspect=16:9", "--method=edge"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number, done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["with space.mp4", "10:30.mp4", "100%d.mp4", "%03d.mkv", "a.b.webm", "x'y\".mov"])
def test_names_are_taken_literally(call, folder, tmp_path, name):
    source = tmp_path / f"in {name.rpartition('.')[0]}.mp4"
    source.write_bytes((folder / "in.mp4").read_bytes())
    code, out, err = call(source, tmp_path / name, "--aspect=16:9", "--method=edge")
    assert (code, err) == (0, []) and len(FrameSource(tmp_path / name)) == 6
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, name])


def test_outputs_by_name(call, refused, folder, tmp_path):
    flags = ("--aspect=16:9", "--method=edge")
    for name in ("frames.v2/", "plain", "plain/"):
        assert call(folder / "in.mp4", f"{tmp_path}/{name}", *flags)[0] == 0
    (tmp_path / "there.x").mkdir()
    assert call(folder / "in.mp4", tmp_path / "there.x", *flags)[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["frames.v2", "plain", "there.x"]
    assert all(len(FrameSource(path)) == 6 for path in tmp_path.iterdir())
    for name, words in (
        ("out.mxf", "must end in .mp4, .mov, .mkv, .webm, .gif, .png, .jpg, .jpeg, .webp, or in / for a folder of PNG"),
        ("out.png", "an image holds one frame, the source has 6"),
    ):
        assert words in refused(folder / "in.mp4", tmp_path / name, *flags)
    assert "must be a file or a folder" in refused(folder / "in.mp4", "-", *flags)
    single = tmp_path / "plain" / "000000.png"
    for suffix in (".png", ".jpg", ".webp"):
        assert call(single, tmp_path / f"one{suffix}", "--pad=8,0,8,0", "--method=edge")[0] == 0
        assert FrameSource(tmp_path / f"one{suffix}").width == 72


def test_encodings_are_asked_for_by_flags(call, refused, folder, tmp_path):
    flags = ("--aspect=16:9", "--method=edge", "--codec=hevc", "--pixel-format=yuv422p10le", "--quality=30")
    assert call(folder / "in.mp4", tmp_path / "out.mp4", *flags)[0] == 0
    assert FrameSource(tmp_path / "out.mp4").pixel_format == "yuv422p10le"
    for flag, words in (
        ("--quality=52", "--quality must lie in 0..51 for h264, found 52"),
        ("--codec=ffv1", "--codec must be one of h264, hevc, av1, vp9 for .mp4, found 'ffv1'"),
        ("--pixel-format=rgb", "--pixel-format must be one of yuv420p"),
    ):
        assert words in refused(folder / "in.mp4", tmp_path / "other.mp4", *flags[:2], flag)


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size=41x32"], "even, found 41x32"),
        (["--size=38x32"], "38x32 is smaller than the source's 40x32"),
        (["--size=large"], "--size must be WIDTHxHEIGHT"),
        (["--aspect=wide"], "--aspect must be WIDTH:HEIGHT"),
        (["--aspect=16:9,0:9"], "--aspect must be WIDTH:HEIGHT"),
        (["--aspect=9000:1"], "too large"),
        (["--pad=1,2,3"], "--pad must be"),
        (["--pad=-2,0,2,0"], "no padding may be negative"),
        (["--pad=1,0,0,0"], "even, found 41x32"),
        (["--aspect=16:9", "--anchor=2,0"], "the anchor must lie in 0..1"),
        (["--aspect=16:9", "--anchor=left"], "--anchor must be"),
        (["--pad=2,0,2,0", "--anchor=0,0"], "takes no --anchor"),
        ([], "one of --aspect, --size and --pad is needed, found none"),
        (["--aspect=16:9", "--size=80x80"], "found --aspect and --size"),
    ],
)
def test_bad_targets_are_refused(folder, tmp_path, arguments, words):
    flags = dict(argument.removeprefix("--").split("=") for argument in arguments)
    with pytest.raises(ValueError, match=words):
        plan_targets(FrameSource(folder / "in.mp4"), tmp_path / "out.mp4", **flags)


def test_bad_outputs_are_refused(folder, tmp_path):
    source = FrameSource(folder / "frames")
    for path, words in (
        (folder / "frames", "is the input"),
        (tmp_path / "none" / "out.mp4", "there is no folder"),
        (tmp_path / "out.avi", "must end in"),
        (tmp_path, "holds other things"),
    ):
        (tmp_path / "stranger").touch()
        with pytest.raises(ValueError, match=words):
            plan_targets(source, path, aspect="16:9")


def test_methods_and_their_options():
    names = "lite, m3ddm, globalpaint, in2out, isvi, edge, blur, telea, mosaic"
    with pytest.raises(ValueError, match=f"--method must be one of {names}, found 'magic'"):
        make_outpainter("magic")
    with pytest.raises(ValueError, match="--method=edge takes no --steps"):
        make_outpainter("edge", model=None, steps=3)
    with pytest.raises(ValueError, match="--method=in2out takes no --windows"):
        make_outpainter("in2out", model="folder", windows=2)
    with pytest.raises(ValueError, match="--method=m3ddm takes no --interpolation_model"):
        make_outpainter("m3ddm", interpolation_model="folder")
    with pytest.raises(ValueError, match="--method=telea takes no --sequential"):
        make_outpainter("telea", sequential=True)
    for method in ("m3ddm", "globalpaint", "mosaic"):
        with pytest.raises(ValueError, match=f"--method={method} takes no --mask"):
            make_outpainter(method, mask=np.zeros((1, 8, 8, 1), np.uint8))


def draw(path, height, width, *boxes, value=255):
    """A mask image, black but for boxes (top, bottom, left, right)."""
    mask = np.zeros((height, width), np.uint8)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = value
    cv2.imwrite(str(path), mask)
    return path


HOLE = (8, 20, 10, 25)  # in frames of 40x32


def test_a_mask_alone_keeps_the_canvas(folder, tmp_path):
    (target,) = plan_targets(FrameSource(folder / "in.mp4"), tmp_path / "out.mp4", mask="mask.png")
    assert target == (tmp_path / "out.mp4", Canvas.from_size(32, 40, 32, 40))
    odd = FrameSource.from_array(np.zeros((1, 31, 39, 3), np.uint8))
    ((_, canvas),) = plan_targets(odd, tmp_path / "out.mp4", mask="mask.png")
    assert canvas == Canvas.from_pad(31, 39, 0, 0, 1, 1), "files have even sides"


@pytest.mark.parametrize("on_canvas", [False, True])
def test_masked_pixels_are_made_and_all_others_the_source(folder, tmp_path, on_canvas):
    source = FrameSource(folder / "in.mp4")
    targets = plan_targets(source, tmp_path / "out", aspect="16:9" if on_canvas else "16:9,1:1")
    top, bottom, left, right = HOLE
    if on_canvas:
        drawn = draw(tmp_path / "mask.png", 32, 56, (top, bottom, left + 8, right + 8))
    else:
        drawn = draw(tmp_path / "mask.png", 32, 40, HOLE)
    placed = place_masks(MaskSource(drawn, len(source)), targets)
    for (path, canvas), masks in zip(targets, placed, strict=True):
        grey = np.full((len(source), canvas.height, canvas.width, 3), 77, np.uint8)
        assert outpaint(source, lambda *_: iter((grey[:4], grey[4:])), canvas, path, None, masks) == 6  # noqa: B023
        expected = canvas.paste(grey, source[:])
        expected[:, *canvas.box][:, top:bottom, left:right] = 77
        np.testing.assert_array_equal(FrameSource(path)[:], expected)


def test_masks_that_do_not_fit_are_refused(folder, tmp_path):
    source = FrameSource(folder / "in.mp4")

    def place(path, **where):
        return place_masks(MaskSource(path, len(source)), plan_targets(source, tmp_path / "out", **where, mask=path))

    mask = tmp_path / "mask.png"
    for size, where, words in (
        ((32, 56), {"aspect": "16:9,1:1"}, "the masks are 56x32: 40x32 or 40x40 is accepted"),
        ((32, 32), {}, "the masks are 32x32: 40x32 is accepted, the source's size"),
        ((32, 40), {"aspect": "16:9"}, "the mask is white nowhere on the source"),
        ((32, 56), {"aspect": "16:9"}, "the mask is white nowhere on the source"),
    ):
        draw(mask, *size)
        with pytest.raises(ValueError, match=words):
            place(mask, **where)
    for size, where in (((32, 40), {}), ((32, 56), {"aspect": "16:9"})):
        draw(mask, *size, (0, 32, 0, 56))
        with pytest.raises(ValueError, match="white everywhere on the source: white is what is made"):
            place(mask, **where)
    draw(mask, 32, 40, HOLE, value=127)
    with pytest.raises(ValueError, match="white nowhere"):
        place(mask)
    # A frame may be unknown as a whole, or known, where the others are not.
    (tmp_path / "masks").mkdir()
    for index in range(6):
        draw(tmp_path / "masks" / f"{index}.png", 32, 40, *[(0, 32, 0, 40)] * (index == 5))
    assert len(place(tmp_path / "masks")) == 1
    with pytest.raises(ValueError, match="the output .*masks is the mask"):
        plan_targets(source, tmp_path / "masks", mask=str(tmp_path / "masks"))


def test_isvi_removes_what_a_mask_marks(tmp_path):
    """A white box on a ramp of greys gives way to greys as around it; the rest is exact."""
    ramp = np.broadcast_to(np.linspace(40, 160, 40)[:, None], (1, 32, 40, 3)).astype(np.uint8)
    top, bottom, left, right = HOLE
    boxed = ramp.copy()
    boxed[:, top:bottom, left:right] = 255
    source, mask = FrameSource.from_array(boxed), draw(tmp_path / "mask.png", 32, 40, HOLE)
    ((path, canvas),) = targets = plan_targets(source, tmp_path / "out", mask=str(mask))
    (masks,) = place_masks(MaskSource(mask, 1), targets)
    assert outpaint(source, make_outpainter("isvi", mask=masks), canvas, path, None, masks) == 1
    written = FrameSource(path)[:]
    hidden = masks[0:1][..., 0] == 1
    np.testing.assert_array_equal(written[~hidden], ramp[~hidden])
    assert np.abs(written.astype(int) - ramp)[hidden].mean() < 15


class Flags(SimpleNamespace):
    """Values of flags; None where none is given."""

    def __getattr__(self, name):
        return None


def test_an_outpainter_is_made_for_each_canvas_that_has_masks(folder, tmp_path, monkeypatch):
    made = []

    def make(mask=None):
        made.append(mask)

        def grey(source, canvas, rng):
            for start in range(0, len(source), 2):
                frames = np.full((2, canvas.height, canvas.width, 3), 77, np.uint8)
                yield frames if mask is None else frames + mask[start : start + 2]  # the canvas's own masks

        return grey

    def run(name, **given):
        run_main(monkeypatch, folder / "frames", tmp_path / name, method="grey", **given)

    class Row(Method):
        def __call__(self, **options):
            return make(**options)

    monkeypatch.setitem(OUTPAINTERS, "grey", Row("", MaskOptions))
    run("plain", aspect="16:9,1:1")
    assert made == [None]
    mask = draw(tmp_path / "mask.png", 32, 40, HOLE)
    run("masked", aspect="16:9,1:1", mask=str(mask))
    assert [masks.width for masks in made[1:]] == [56, 40]
    run("inside", mask=str(mask))
    top, bottom, left, right = HOLE
    expected = FrameSource(folder / "frames")[:].copy()
    expected[:, top:bottom, left:right] = 78
    np.testing.assert_array_equal(FrameSource(tmp_path / "inside")[:], expected)
    expected = Canvas.from_aspect(32, 40, 1.0).paste(np.full((6, 40, 40, 3), 78, np.uint8), expected)
    np.testing.assert_array_equal(FrameSource(tmp_path / "masked_1x1")[:], expected)


def run_main(monkeypatch, source, target, **given):
    monkeypatch.setattr(outpaint_module, "flags", SimpleNamespace(FLAGS=Flags(set=[], **given)))
    outpaint_module.main(str(source), str(target))


def test_a_preview_of_each_output_shows_the_source_beside_it(folder, tmp_path, monkeypatch):
    given = {"method": "edge", "aspect": "16:9,1:1", "preview": str(tmp_path / "look.png")}
    run_main(monkeypatch, folder / "frames", tmp_path / "out.mp4", **given)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["look_16x9.png", "look_1x1.png"]
    sheet, canvas = cv2.imread(str(tmp_path / "look_1x1.png"))[..., ::-1], Canvas.from_aspect(32, 40, 1.0)
    first = FrameSource(folder / "frames")[:1]
    np.testing.assert_array_equal(sheet[: canvas.height, : canvas.width][canvas.box], first[0])
    assert (sheet[: canvas.top, : canvas.width] == sheet[0, 0]).all()
    made = next(make_outpainter("edge")(FrameSource(folder / "frames"), canvas, None))[0]
    np.testing.assert_array_equal(sheet[: canvas.height, canvas.width :], made)


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.mp4", "is the output"), ("look.tiff", "must end in .png"), ("none/look.png", "no folder")],
)
def test_a_preview_that_cannot_be_written_is_told_before_anything_is_made(folder, tmp_path, monkeypatch, name, message):
    with pytest.raises(ValueError, match=message):
        run_main(
            monkeypatch,
            folder / "frames",
            tmp_path / "out.mp4",
            method="edge",
            aspect="1:1",
            preview=str(tmp_path / name),
        )
    assert not list(tmp_path.iterdir())


def test_the_method_is_lite_unless_a_model_or_a_mask_is_given(folder, tmp_path, monkeypatch):
    asked, adapted = [], []

    def note(method, **options):
        asked.append(method)
        adapted.append((options.get("adapt"), options.get("cache")))
        return OUTPAINTERS["edge"]()

    monkeypatch.setattr(outpaint_module, "make_outpainter", note)
    for given in (
        {},
        {"prefer": "faithful", "adapt": 3, "cache": "kept"},
        {"model": "folder"},
        {"preset": "official"},
        {"method": "isvi", "model": "m"},
        {"mask": str(draw(tmp_path / "mask.png", 32, 40, HOLE))},
    ):
        run_main(monkeypatch, folder / "frames", tmp_path / "out", aspect="1:1", seed=0, **given)
    assert asked == ["lite", "lite", "m3ddm", "m3ddm", "isvi", "isvi"]
    # Where nothing is learnt no place to keep it is named, which other methods would refuse.
    assert adapted == [(None, None), (3, "kept"), *[(None, None)] * 4]


def test_the_kinds_that_a_folder_holds_select_the_method(tmp_path):
    for name in ("raft", "lama", "migan"):
        (tmp_path / "several" / name).mkdir(parents=True)
        (tmp_path / "one" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "one/raft").rmdir()
    kinds = {"lama": "lite", "migan": "lite", "e2fgvi": "in2out", "globalpaint": "globalpaint", "m3ddm": "m3ddm"}
    for kind in (*kinds, "sd"):
        (tmp_path / "of" / kind).mkdir(parents=True)
        (tmp_path / "of" / kind / "config.json").write_text(json.dumps({"kind": kind}))
        assert default_method(str(tmp_path / "of" / kind), None, None) == kinds.get(kind, "m3ddm")
    found = [
        default_method(str(tmp_path / name), None, mask) for name in ("one", "several") for mask in (None, "m.png")
    ]
    assert found == ["lite", "isvi", "isvi", "isvi"]


def test_the_command_refuses_in_one_line(refused, folder, tmp_path):
    out = tmp_path / "out.mp4"
    assert "one of --aspect" in refused(folder / "in.mp4", out)
    assert "even" in refused(folder / "in.mp4", out, "--size=41x33", "--method=edge")
    assert "IN OUT expected" in refused(folder / "in.mp4")
    assert "--steps" in refused(folder / "in.mp4", out, "--aspect=1:1", "--steps=few")
    assert "fps" in refused(folder / "in.mp4", out, "--aspect=1:1", "--fps=-1")
    line = refused(folder / "in.mp4", out, "--aspect=1:1", "--method=globalpaint", "--model=key")
    assert "--interpolation_model=FOLDER, or --sequential" in line
    mask = draw(tmp_path / "mask.png", 32, 40)
    assert "white nowhere" in refused(folder / "in.mp4", out, f"--mask={mask}", "--method=isvi")
    draw(mask, 32, 40, HOLE)
    assert "--method=blur takes no --mask" in refused(folder / "in.mp4", out, f"--mask={mask}", "--method=blur")
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


def test_pipes_are_refused(refused, folder, tmp_path):
    (tmp_path / "frames").mkdir()
    os.mkfifo(tmp_path / "frames" / "0.png")
    os.mkfifo(tmp_path / "in.mp4")
    for source in (tmp_path / "in.mp4", tmp_path / "frames"):
        refused(source, tmp_path / "out", "--aspect=16:9", "--method=edge")


def test_an_image_with_trailing_bytes_is_one_mask(folder, tmp_path):
    mask = draw(tmp_path / "mask.png", 32, 40, HOLE)
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert MaskSource(mask, 6).count == 1


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="/dev/full is not here: nothing is always full")
def test_a_full_disk_behind_stdout_is_no_failure(folder, tmp_path):
    command = [sys.executable, "-m", "m3ddm_jax.outpaint", folder / "in.mp4", tmp_path / "out", "--aspect=16:9"]
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--method=edge"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "") and len(FrameSource(tmp_path / "out")) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(folder, tmp_path, number):
    code = f"""
import os, sys
from m3ddm_jax import cli, outpaint
from m3ddm_jax.video.sink import FrameSink
write = FrameSink.write
FrameSink.write = lambda *arguments: (write(*arguments), os.kill(os.getpid(), {number.value}))
outpaint._define_flags()
cli.run("outpaint", outpaint.main, "IN", "OUT")
"""
    command = [sys.executable, "-c", code, folder / "in.mp4", tmp_path / "out", "--aspect=16:9", "--method=edge"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 128 + number and done.stderr == f"outpaint: ended by {number.name}\n"
    assert os.listdir(tmp_path) == []
