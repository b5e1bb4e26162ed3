"""Canvas, masks and file of an output, as arguments describe them."""

import numpy as np
import pytest

from m3ddm_jax.api.targets import parse_target, plan_target
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.video import FrameSource, MaskSource
from tests.outpaint.helpers import HOLE, draw


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"size": "41x32"}, "even, found 41x32"),
        ({"size": "38x32"}, "38x32 is smaller than the source's 40x32"),
        ({"size": "large"}, "`size` must be WIDTHxHEIGHT"),
        ({"aspect": "wide"}, "`aspect` must be WIDTH:HEIGHT"),
        ({"aspect": "0:9"}, "`aspect` must be WIDTH:HEIGHT"),
        ({"aspect": "1:0"}, "`aspect` must be WIDTH:HEIGHT"),
        ({"aspect": "9000:1"}, "too large"),
        ({"pad": "1,2,3"}, "`pad` must be"),
        ({"pad": "-2,0,2,0"}, "no padding may be negative"),
        ({"pad": "1,0,0,0"}, "even, found 41x32"),
        ({"aspect": "16:9", "anchor": "2,0"}, "the anchor must lie in 0..1"),
        ({"aspect": "16:9", "anchor": "left"}, "`anchor` must be"),
        ({"pad": "2,0,2,0", "anchor": "0,0"}, "accepts no `anchor`"),
        ({}, "one of `aspect`, `size` and `pad` is needed, found none"),
        ({"aspect": "16:9", "size": "80x80"}, "found `aspect` and `size`"),
    ],
)
def test_bad_targets_are_refused(folder, tmp_path, texts, words):
    with pytest.raises(ValueError, match=words):
        plan_target(FrameSource(folder / "in.mp4"), tmp_path / "out.mp4", **parse_target(texts))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": (60.5, 40)}, r"`size` must be \(width, height\) in pixels, found \(60.5, 40\)"),
        ({"size": "60x40"}, "found '60x40'"),
        ({"pad": (1, 2)}, r"`pad` must be \(left, top, right, bottom\)"),
        ({"aspect": -1}, "or a positive number, found -1"),
        ({"aspect": float("nan")}, "found nan"),
        ({"aspect": True}, "found True"),
        ({"aspect": 2, "anchor": 0.5}, r"`anchor` must be \(x, y\) in 0..1, found 0.5"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, words):
    source = FrameSource.from_array(np.zeros((1, 32, 40, 3), np.uint8))
    with pytest.raises(ValueError, match=words):
        plan_target(source, **arguments)


def test_texts_and_numbers_mean_the_same():
    source = FrameSource.from_array(np.zeros((1, 32, 40, 3), np.uint8))
    for text, numbers in (
        ({"aspect": "16:9", "anchor": "0,1"}, {"aspect": 16 / 9, "anchor": (0, 1)}),
        ({"aspect": "2.4"}, {"aspect": 2.4}),
        ({"size": "60x40", "pad": None, "anchor": ""}, {"size": np.array([60, 40])}),
        ({"pad": "2,4,6,0"}, {"pad": [2, 4, 6, 0]}),
    ):
        assert plan_target(source, **parse_target(text)) == plan_target(source, **numbers)


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
            plan_target(source, path, aspect="16:9")


def test_a_mask_alone_keeps_the_canvas():
    for shape, canvas in (
        ((32, 40), Canvas.from_size(32, 40, 32, 40)),
        ((31, 39), Canvas.from_pad(31, 39, 0, 0, 1, 1)),  # files have even sides
    ):
        mask = np.zeros(shape, bool)
        mask[:9] = True
        source = FrameSource.from_array(np.zeros((1, *shape, 3), np.uint8))
        assert plan_target(source, mask=mask).canvas == canvas


def test_masks_that_do_not_fit_are_refused(folder, tmp_path):
    source = FrameSource(folder / "in.mp4")

    def place(path, **where):
        return plan_target(source, tmp_path / "out", **where, mask=path).masks

    mask = tmp_path / "mask.png"
    for size, where, words in (
        ((32, 56), {"aspect": "1:1"}, "the masks are 56x32: 40x32 or 40x40 is accepted"),
        ((32, 32), {}, "the masks are 32x32: 40x32 is accepted, the source's size"),
        ((32, 40), {"aspect": "16:9"}, "the mask is white nowhere on the source"),
        ((32, 56), {"aspect": "16:9"}, "the mask is white nowhere on the source"),
    ):
        draw(mask, *size)
        with pytest.raises(ValueError, match=words):
            place(mask, **where)
    for size, where in (((32, 40), {}), ((32, 56), {"aspect": "16:9"})):
        draw(mask, *size, (0, 32, 0, 56))
        with pytest.raises(ValueError, match="white everywhere on the source: white marks what is generated"):
            place(mask, **where)
    draw(mask, 32, 40, HOLE, value=127)
    with pytest.raises(ValueError, match="white nowhere"):
        place(mask)
    # A frame may be unknown as a whole, or known, where the others are not.
    (tmp_path / "masks").mkdir()
    for index in range(6):
        draw(tmp_path / "masks" / f"{index}.png", 32, 40, *[(0, 32, 0, 40)] * (index == 5))
    assert place(tmp_path / "masks")[5:6].all()
    with pytest.raises(ValueError, match="the output .*masks is the mask"):
        plan_target(source, tmp_path / "masks", mask=str(tmp_path / "masks"))


def test_masks_in_memory_are_those_of_a_file(folder, tmp_path):
    source = FrameSource(folder / "in.mp4")
    top, bottom, left, right = HOLE
    mask = np.zeros((32, 40), bool)
    mask[top:bottom, left:right] = True
    expected = plan_target(source, aspect="16:9", mask=draw(tmp_path / "mask.png", 32, 40, HOLE)).masks[0:6]
    for given in (mask, mask * np.uint8(255), np.repeat(mask[None], 6, axis=0)):
        np.testing.assert_array_equal(plan_target(source, aspect="16:9", mask=given).masks[0:6], expected)
    for given, words in (
        (mask[None, None], r"`mask` must be bool or uint8 \[H, W\] or \[T, H, W\], found bool \[1, 1, 32, 40\]"),
        (mask.astype(float), "found float64"),
        (np.repeat(mask[None], 5, axis=0), "`mask` has 5 masks for 6 frames"),
        (mask[:, :30], "the masks are 30x32"),
    ):
        with pytest.raises(ValueError, match=words):
            plan_target(source, aspect="16:9", mask=given)


def test_an_image_with_trailing_bytes_is_one_mask(folder, tmp_path):
    mask = draw(tmp_path / "mask.png", 32, 40, HOLE)
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert MaskSource(mask, 6).count == 1
