import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import protocol


class Frames:
    """An array [T,H,W,3] as a source."""

    def __init__(self, frames, fps=24.0):
        self.frames, self.fps = frames, fps
        self.height, self.width = frames.shape[1:3]

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, key):
        return self.frames[key]


def ramp(frames=3, height=40, width=60):
    """Frames whose red is the column, whose green is the row and whose blue is the frame number."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([np.stack([columns, rows, np.full_like(rows, t)], -1) for t in range(frames)]).astype(np.uint8)


@pytest.mark.parametrize(("ratio", "first", "last"), [(0.25, 32, 224), (0.66, 84, 172), (0.5, 64, 192)])
def test_known_columns_of_the_published_ratios(ratio, first, last):
    border = protocol.Border("x", ratio=ratio)
    known = np.flatnonzero(border.masks("clip", 1, 256, 256)(0, 1)[128, :, 0] == 0)
    assert (
        (known[0], known[-1] + 1) == (first, last) == (border.canvas(256, 256).left, 256 - border.canvas(256, 256).left)
    )


@given(st.integers(1, 400), st.integers(1, 99))
def test_a_ratio_of_whole_pixels_is_met_exactly(half, percent):
    """Rounding down must not lose a pixel to a ratio like 0.58, which floating point holds from below."""
    left, top, right, bottom = protocol.Border("x", ratio=percent / 100).sides(8, 200 * half)
    assert (left, top, right, bottom) == (half * percent, 0, half * percent, 0)


def test_pad_and_mask_and_canvas_agree():
    border = protocol.Border("x", pad=(3, 0, 5, 4))
    mask, canvas = border.masks("clip", 1, 40, 60)(0, 1), border.canvas(40, 60)
    np.testing.assert_array_equal(mask, canvas.mask())
    assert mask.sum() == 40 * 60 - 36 * 52


@pytest.mark.parametrize("pad", [(0, 0, 0, 0), (30, 0, 30, 0), (0, 50, 0, 0)])
def test_refuses_a_border_that_leaves_nothing_known_or_nothing_to_generate(pad):
    with pytest.raises(ValueError, match="some must be known and some generated"):
        protocol.Border("x", pad=pad).sides(40, 60)


def test_square_is_the_centre_at_the_aspect_of_the_source():
    square = protocol.to_square(Frames(ramp()), 20)
    frames = square[:]
    assert frames.shape == (3, 20, 20, 3) and (square.height, square.width, len(square)) == (20, 20, 3)
    # Half size: column x of the crop is the mean of source columns 10 + 2x and 11 + 2x, the centre third in width.
    np.testing.assert_allclose(frames[0, 0, :, 0], 10 + 2 * np.arange(20) + 0.5, atol=0.5)
    np.testing.assert_allclose(frames[0, :, 0, 1], 2 * np.arange(20) + 0.5, atol=0.5)


def test_square_of_a_square_of_that_size_changes_nothing():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    square = protocol.to_square(Frames(frames), 32)
    np.testing.assert_array_equal(square[:], frames)
    assert square[[]].shape == square[2:].shape == (0, 32, 32, 3)


@given(st.integers(11, 90), st.integers(11, 90))
def test_square_has_its_size_whatever_the_source(height, width):
    assert protocol.to_square(Frames(ramp(1, height, width)), 24)[0:1].shape == (1, 24, 24, 3)


def test_views_take_slices_and_lists_and_end_where_they_end():
    view = protocol.first_frames(Frames(ramp(6)), 4)
    assert len(view) == 4
    assert view[2:9][:, 0, 0, 2].tolist() == [2, 3]
    assert view[[3, 0, -1]][:, 0, 0, 2].tolist() == [3, 0, 3]
    with pytest.raises(IndexError):
        view[[4]]
    assert len(protocol.first_frames(Frames(ramp(6)), None)) == len(protocol.first_frames(Frames(ramp(6)), 9)) == 6


def test_known_part_is_what_the_canvas_puts_back():
    truth = Frames(ramp())
    canvas = protocol.Border("x", pad=(4, 2, 6, 8)).canvas(40, 60)
    known = protocol.known_part(truth, canvas)
    np.testing.assert_array_equal(canvas.paste(truth[:], known[:]), truth[:])
    assert (known.height, known.width) == known[:].shape[1:3] == (30, 50)


def test_clips_are_videos_and_folders(tmp_path):
    for name in ("b.mp4", "c.MOV", "notes.txt", ".hidden.mp4", "d.png"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    assert list(protocol.list_clips(tmp_path)) == ["a", "b", "c"]
    assert list(protocol.list_clips(tmp_path, images=True)) == ["a", "b", "c", "d"]


def test_refuses_folders_without_clips_and_names_that_clash(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        protocol.list_clips(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no video"):
        protocol.list_clips(tmp_path)
    (tmp_path / "a.mp4").touch(), (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="same name"):
        protocol.list_clips(tmp_path)


def test_names_that_do_not_match_are_all_named():
    with pytest.raises(ValueError, match="out lacks b, c and has beyond the truth d"):
        protocol.match(dict.fromkeys("abc"), dict.fromkeys("ad"), "out")


@pytest.mark.parametrize(
    ("ratio", "pad", "names"),
    [("0.25,0.66", None, ["0.25", "0.66"]), (None, "1,2,3,4", ["pad 1,2,3,4"]), (None, None, [])],
)
def test_regions_as_a_user_types_them(ratio, pad, names):
    assert [region.name for region in protocol.parse_regions(ratio, pad, None, "")] == names


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
        protocol.parse_regions(ratio, pad, None, "")


def test_masks_from_an_image_and_from_frames(tmp_path):
    image = np.zeros((40, 60), np.uint8)
    image[:, :20] = 255
    cv2.imwrite(str(tmp_path / "still.png"), image)
    (tmp_path / "moving").mkdir()
    for t in range(3):
        cv2.imwrite(str(tmp_path / "moving" / f"{t:05d}.png"), np.roll(image, t, axis=1))
    region = protocol.MaskFolder("masks", protocol.list_clips(tmp_path, images=True))
    still, moving = region.masks("still", 3, 40, 60), region.masks("moving", 3, 40, 60)
    np.testing.assert_array_equal(still(0, 3)[..., 0], image // 255)
    np.testing.assert_array_equal(moving(1, 3)[:, 0, :, 0].argmax(-1), [1, 2])
    assert moving(1, 3).shape == (2, 40, 60, 1) and moving(0, 3).max() == 1
    with pytest.raises(ValueError, match="is 60x40, its clip is 30x40"):
        region.masks("still", 3, 40, 30)
    with pytest.raises(ValueError, match="3 masks for 4 frames"):
        region.masks("moving", 4, 40, 60)
