import cv2
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.preview import Preview

GIVEN = np.full((9, 16, 24, 3), 10, np.uint8)
MADE = np.arange(0, 180, 20, dtype=np.uint8)[:, None, None, None] + GIVEN


def write(path, chunk=4, size=(16, 24)):
    with Preview(path, 24.0, 9, *size) as preview:
        for start in range(0, 9, chunk):
            preview.write(GIVEN[start : start + chunk], MADE[start : start + chunk])


def test_a_sheet_shows_frames_over_the_whole_video(tmp_path):
    path = tmp_path / "sheet.png"
    write(path)
    sheet = cv2.imread(str(path))
    assert sheet.shape == (4 * 16, 2 * 24, 3)
    np.testing.assert_array_equal(sheet[:, :24], 10)
    assert sheet[::16, 24, 0].tolist() == [30, 70, 110, 150]  # frames 1, 3, 5 and 7 of 9
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


def test_one_frame_is_shown(tmp_path):
    with Preview(tmp_path / "one.png", 24.0, 1, 16, 24) as preview:
        preview.write(GIVEN[:1], MADE[:1])
    assert cv2.imread(str(tmp_path / "one.png")).shape == (16, 48, 3)


def test_large_frames_are_made_smaller(tmp_path):
    with Preview(tmp_path / "large.png", 24.0, 1, 20, 1280) as preview:
        preview.write(*[np.zeros((1, 20, 1280, 3), np.uint8)] * 2)
    assert cv2.imread(str(tmp_path / "large.png")).shape == (10, 1280, 3)


def test_a_video_has_all_frames(tmp_path):
    write(tmp_path / "pair.mp4")
    frames = FrameSource(tmp_path / "pair.mp4")[:]
    assert frames.shape == (9, 16, 48, 3)
    assert np.abs(frames[:, 4:-4, 4:20].astype(int) - 10).max() < 6
    assert np.abs(frames[:, 4:-4, 28:-4].astype(int) - MADE[:, 4:-4, 4:-4]).max() < 8


@pytest.mark.parametrize("name", ["sheet.png", "pair.mp4"])
def test_nothing_is_left_of_what_fails(tmp_path, name):
    with pytest.raises(RuntimeError), Preview(tmp_path / name, 24.0, 9, 16, 24) as preview:
        preview.write(GIVEN, MADE)
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sheet.tiff", "must end in .png or .mp4"),
        ("none/sheet.png", "no folder"),
        ("none/pair.mp4", "no folder"),
        ("folder.png", "it is a folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_told(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=message):
        Preview(tmp_path / name, 24.0, 9, 16, 24)
