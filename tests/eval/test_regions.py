import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import regions
from eval.clips import Fit, list_clips
from m3ddm_jax.video import FrameSource


def truth(frames=1, height=40, width=60, fit=None):
    return (fit or Fit("native")).view(FrameSource.from_array(np.zeros((frames, height, width, 3), np.uint8)))


@pytest.mark.parametrize(
    ("ratio", "width", "first", "last"),
    [(0.25, 256, 32, 224), (0.66, 256, 84, 172), (0.5, 256, 64, 192), (0.25, 432, 54, 378), (0.66, 432, 142, 290)],
)
def test_known_columns_of_the_published_ratios(ratio, width, first, last):
    border = regions.Border("x", ratio=ratio)
    known = np.flatnonzero(border.masks("clip", truth(1, 256, width))(0, 1)[128, :, 0] == 0)
    assert (known[0], known[-1] + 1) == (first, last)
    assert border.boxes(256, width) == [[first, 0, last, 256]] and border.canvas(256, width).left == first


@given(st.integers(1, 400), st.integers(1, 99))
def test_a_ratio_of_whole_pixels_is_met_exactly(half, percent):
    """Rounding down must not lose a pixel to a ratio like 0.58, which floating point holds from below."""
    left, top, right, bottom = regions.Border("x", ratio=percent / 100).sides(8, 200 * half)
    assert (left, top, right, bottom) == (half * percent, 0, half * percent, 0)


def test_pad_and_mask_and_canvas_agree():
    border = regions.Border("x", pad=(3, 0, 5, 4))
    mask, canvas = border.masks("clip", truth())(0, 1), border.canvas(40, 60)
    np.testing.assert_array_equal(mask, canvas.mask())
    assert mask.sum() == 40 * 60 - 36 * 52


@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (30, 0, 30, 0), (0, 50, 0, 0)])
def test_refuses_a_border_that_leaves_nothing_known_or_nothing_to_generate(pad):
    with pytest.raises(ValueError, match="some must be known and some generated"):
        regions.Border("x", pad=pad).sides(40, 60)


def test_squares_lie_evenly():
    squares = regions.Squares("x", columns=5, rows=4, side=0.125)
    boxes = squares.boxes(240, 432)
    assert len(boxes) == 20 and all(r - l == b - t == 30 for l, t, r, b in boxes)  # noqa: E741
    assert boxes[0] == [28, 15, 58, 45] and boxes[-1] == [373, 195, 403, 225]
    mask = squares.masks("clip", truth(1, 240, 432))(0, 1)
    assert mask.sum() == 20 * 30 * 30
    assert mask[15:45, 28:58].all() and not mask[:15].any()


@pytest.mark.parametrize(
    ("ratio", "pad", "names"),
    [("0.25,0.66", None, ["0.25", "0.66"]), (None, "1,2,3,4", ["pad-1,2,3,4"]), (None, None, [])],
)
def test_regions_as_a_user_types_them(ratio, pad, names):
    assert [region.name for region in regions.parse_regions(ratio, pad, None, [])] == names


@pytest.mark.parametrize(
    ("ratio", "pad", "message"),
    [
        ("0", None, "fractions between 0 and 1"),
        ("0.5,x", None, "fractions between 0 and 1"),
        (None, "1,2,3", "LEFT,TOP,RIGHT,BOTTOM"),
        (None, "1,2,3,-4", "LEFT,TOP,RIGHT,BOTTOM"),
        ("0.5", "1,2,3,4", "not several"),
    ],
)
def test_refuses_regions_that_make_no_sense(ratio, pad, message):
    with pytest.raises(ValueError, match=message):
        regions.parse_regions(ratio, pad, None, [])


@pytest.fixture
def masks(tmp_path):
    image = np.zeros((40, 60), np.uint8)
    image[:, :20] = 255
    cv2.imwrite(str(tmp_path / "still.png"), image)
    (tmp_path / "moving").mkdir()
    for t in range(3):
        cv2.imwrite(str(tmp_path / "moving" / f"{t:05d}.png"), np.roll(image, t, axis=1))
    return regions.MaskFolder("masks", list_clips(tmp_path, images=True))


def test_masks_from_an_image_and_from_frames(masks):
    still, moving = masks.masks("still", truth(3)), masks.masks("moving", truth(3))
    assert still(0, 3).sum() == 40 * 20 and still(0, 3)[:, :20].all()
    np.testing.assert_array_equal(moving(1, 3)[:, 0, :, 0].argmax(-1), [1, 2])
    assert moving(1, 3).shape == (2, 40, 60, 1) and moving(0, 3).max() == 1


def test_masks_of_the_size_of_the_truth_are_resized_as_it_is(masks):
    squashed, cropped = (truth(3, fit=Fit(resize, (20, 20))) for resize in ("squash", "crop"))
    # Columns 0..20 of 60: a third of the squashed ones, and what the crop leaves of them at its left.
    assert masks.masks("still", squashed)(0, 1)[0, :, 0].tolist() == [1] * 7 + [0] * 13
    assert masks.masks("moving", cropped)(0, 1)[0, 0, :, 0].tolist() == [1] * 5 + [0] * 15


def test_refuses_masks_of_other_sizes_and_too_few(masks, tmp_path):
    with pytest.raises(ValueError, match="is 60x40, its clip is 30x40"):
        masks.masks("still", truth(3, 40, 30))
    with pytest.raises(ValueError, match="3 masks for 4 frames"):
        masks.masks("moving", truth(4))
    with pytest.raises(ValueError, match="lacks other and has beyond the truth moving, still"):
        regions.parse_regions(None, None, tmp_path, ["other"])
