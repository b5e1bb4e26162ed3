"""Which method, masks and previews the command's flags choose."""

import json

import cv2
import numpy as np
import pytest

from m3ddm_jax.api import outpainting
from m3ddm_jax.api.outpainting import default_method
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.base import OUTPAINTERS, Method
from m3ddm_jax.video import FrameSource
from tests.outpaint.helpers import HOLE, draw


def test_one_outpainter_serves_all_canvases_and_their_masks(call, folder, tmp_path, monkeypatch):
    made, given = [], []

    def grey(source, canvas, rng, masks=None):
        given.append(masks)
        for start in range(0, len(source), 2):
            frames = np.full((2, canvas.height, canvas.width, 3), 77, np.uint8)
            yield frames if masks is None else frames + masks[start : start + 2]  # the canvas's own masks

    class Row(Method):
        def __call__(self, **options):
            made.append(options)
            return grey

    def run(name, *flags):
        assert call(folder / "frames", tmp_path / name, "--method=grey", *flags)[0] == 0
        return given[-2:]

    monkeypatch.setitem(OUTPAINTERS, "grey", Row("", masks=True))
    assert run("plain", "--aspect=16:9,1:1") == [None, None]
    mask = draw(tmp_path / "mask.png", 32, 40, HOLE)
    assert [masks.width for masks in run("masked", "--aspect=16:9,1:1", f"--mask={mask}")] == [56, 40]
    assert len(made) == 2, "one for each command"
    run("inside", f"--mask={mask}")
    top, bottom, left, right = HOLE
    expected = FrameSource(folder / "frames")[:].copy()
    expected[:, top:bottom, left:right] = 78
    np.testing.assert_array_equal(FrameSource(tmp_path / "inside")[:], expected)
    expected = Canvas.from_aspect(32, 40, 1.0).paste(np.full((6, 40, 40, 3), 78, np.uint8), expected)
    np.testing.assert_array_equal(FrameSource(tmp_path / "masked_1x1")[:], expected)


def test_a_preview_of_each_output_shows_the_source_beside_it(call, folder, tmp_path):
    flags = ["--method=edge", "--aspect=16:9,1:1", f"--preview={tmp_path / 'look.png'}"]
    assert call(folder / "frames", tmp_path / "out.mp4", *flags)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["look_16x9.png", "look_1x1.png"]
    sheet, canvas = cv2.imread(str(tmp_path / "look_1x1.png"))[..., ::-1], Canvas.from_aspect(32, 40, 1.0)
    first = FrameSource(folder / "frames")[:1]
    np.testing.assert_array_equal(sheet[: canvas.height, : canvas.width][canvas.box], first[0])
    assert (sheet[: canvas.top, : canvas.width] == sheet[0, 0]).all()
    made = next(OUTPAINTERS["edge"]()(FrameSource(folder / "frames"), canvas, None))[0]
    np.testing.assert_array_equal(sheet[: canvas.height, canvas.width :], made)


@pytest.mark.parametrize(
    ("name", "message"),
    [("out.mp4", "is the output"), ("look.tiff", "must end in .png"), ("none/look.png", "no folder")],
)
def test_a_preview_that_cannot_be_written_is_refused_first(refused, folder, tmp_path, name, message):
    flags = ["--method=edge", "--aspect=1:1", f"--preview={tmp_path / name}"]
    assert message in refused(folder / "frames", tmp_path / "out.mp4", *flags)
    assert not list(tmp_path.iterdir())


def test_a_preview_is_no_output_of_another_aspect(refused, folder, tmp_path):
    flags = ["--method=edge", "--aspect=16:9,1:1", f"--preview={tmp_path / 'out.mp4'}"]
    assert "is the output" in refused(folder / "frames", tmp_path / "out.mp4", *flags)


def test_kinds_of_models_in_a_folder_select_the_method(tmp_path):
    for name in ("raft", "lama", "migan"):
        (tmp_path / "several" / name).mkdir(parents=True)
        (tmp_path / "one" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "one/raft").rmdir()
    kinds = {"lama": "lite", "migan": "lite", "e2fgvi": "in2out", "globalpaint": "globalpaint", "m3ddm": "m3ddm"}
    for kind in (*kinds, "sd"):
        (tmp_path / "of" / kind).mkdir(parents=True)
        (tmp_path / "of" / kind / "config.json").write_text(json.dumps({"kind": kind}))
        assert default_method(tmp_path / "of" / kind, None, None) == kinds.get(kind, "m3ddm")
    found = [default_method(tmp_path / name, None, mask) for name in ("one", "several") for mask in (None, "m.png")]
    assert found == ["lite", "isvi", "isvi", "isvi"]


def test_the_method_is_lite_unless_a_model_or_a_mask_is_given(call, folder, tmp_path, monkeypatch):
    asked, adapted = [], []

    def note(method, **options):
        asked.append(method)
        adapted.append((options.get("adapt"), options.get("cache")))
        edge = OUTPAINTERS["edge"]()
        return lambda source, canvas, rng, masks=None: edge(source, canvas)

    monkeypatch.setattr(outpainting, "make_outpainter", note)
    for flags in (
        [],
        ["--prefer=faithful", "--adapt=3", f"--cache={tmp_path / 'cached'}"],
        ["--model=folder"],
        ["--preset=official"],
        ["--method=isvi", "--model=m"],
        [f"--mask={draw(tmp_path / 'mask.png', 32, 40, HOLE)}"],
    ):
        assert call(folder / "frames", tmp_path / "out", "--aspect=1:1", *flags)[0] == 0
    assert asked == ["lite", "lite", "m3ddm", "m3ddm", "isvi", "isvi"]
    # Without adaptation no cache is named, which other methods would refuse.
    assert adapted == [(None, None), (3, str(tmp_path / "cached")), *[(None, None)] * 4]
