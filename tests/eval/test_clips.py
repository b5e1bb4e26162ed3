import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import clips
from eval.clips import Fit, View
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.pipelines.isvi import Isvi
from m3ddm_jax.video import FrameSource


def ramp(frames=3, height=40, width=60):
    """Frames whose red is the column, whose green is the row and whose blue is the frame number."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([np.stack([columns, rows, np.full_like(rows, t)], -1) for t in range(frames)]).astype(np.uint8)


def source(*args):
    return FrameSource.from_array(ramp(*args))


def write_clip(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])


def test_cropping_keeps_the_aspect_and_takes_the_middle():
    square = Fit("crop", (20, 20)).view(source())
    frames = square[:]
    assert frames.shape == (3, 20, 20, 3) and (square.height, square.width, len(square)) == (20, 20, 3)
    # Half size: column x of the crop is the mean of source columns 10 + 2x and 11 + 2x, the centre third in width.
    np.testing.assert_allclose(frames[0, 0, :, 0], 10 + 2 * np.arange(20) + 0.5, atol=0.5)
    np.testing.assert_allclose(frames[0, :, 0, 1], 2 * np.arange(20) + 0.5, atol=0.5)


def test_squashing_shows_everything():
    frames = Fit("squash", (20, 20), "linear")(ramp())
    np.testing.assert_allclose(frames[0, 0, :, 0], 3 * np.arange(20) + 1, atol=0.5)


def test_native_trims_odd_sides_alone():
    frames = ramp(2, 21, 35)
    np.testing.assert_array_equal(Fit("native")(frames), frames[:, :20, :34])
    np.testing.assert_array_equal(Fit("native")(ramp()), ramp())


def test_frames_of_the_right_size_stay_as_they_are():
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for resize in ("crop", "squash"):
        view = Fit(resize, (32, 32)).view(FrameSource.from_array(frames))
        np.testing.assert_array_equal(view[:], frames)
        assert view[[]].shape == view[2:].shape == (0, 32, 32, 3)


@given(st.integers(11, 90), st.integers(11, 90), st.sampled_from(["crop", "squash"]))
def test_frames_have_the_size_whatever_the_source(height, width, resize):
    assert Fit(resize, (14, 24))(ramp(1, height, width)).shape == (1, 14, 24, 3)


def test_masks_stay_masks():
    mask = (ramp(1, 40, 60)[..., :1] >= 33).astype(np.uint8)
    fitted = Fit("squash", (17, 24))(mask, nearest=True)
    assert fitted.shape == (1, 17, 24, 1) and set(np.unique(fitted)) == {0, 1}


@pytest.mark.parametrize(("resize", "size"), [("stretch", (2, 2)), ("crop", None), ("native", (2, 2))])
def test_refuses_a_fit_that_says_nothing(resize, size):
    with pytest.raises(ValueError, match="is accepted"):
        Fit(resize, size)


def test_views_take_slices_and_lists_and_end_where_they_end():
    view = Fit("native").view(source(6), 4)
    assert len(view) == 4
    assert view[2:9][:, 0, 0, 2].tolist() == [2, 3]
    assert view[[3, 0, -1]][:, 0, 0, 2].tolist() == [3, 0, 3]
    inner = View(view, 4, 20, 20, lambda frames: frames[:, :20, :20])
    assert inner.reopen()[1:3][:, 0, 0, 2].tolist() == [1, 2] and inner.reopen().source is not inner.source
    # All that the default outpainter asks of a source.
    made = [frame for frame, _ in Isvi().carry(inner, Canvas.from_size(20, 20, 20, 24))]
    assert [frame[0, 2, 2] for frame in made] == [0, 1, 2, 3]
    with pytest.raises(IndexError):
        view[[4]]
    assert len(Fit("native").view(source(6))) == len(Fit("native").view(source(6), 9)) == 6


def test_known_part_is_what_the_canvas_puts_back():
    truth = Fit("native").view(source())
    canvas = Canvas.from_pad(30, 50, 4, 2, 6, 8)
    known = clips.known_part(truth, canvas)
    np.testing.assert_array_equal(canvas.paste(truth[:], known[:]), truth[:])
    assert (known.height, known.width) == known[:].shape[1:3] == (30, 50)


def test_outputs_have_the_size_of_the_truth_or_the_protocols(tmp_path):
    write_clip(tmp_path / "truth", ramp(3))
    for name, size in (("own", (40, 60)), ("fitted", (20, 20)), ("other", (20, 30))):
        write_clip(tmp_path / name, np.zeros((3, *size, 3), np.uint8))
    fit = Fit("crop", (20, 20))
    for name, size in (("own", (40, 60)), ("fitted", (20, 20))):
        truth, output = clips.open_pair(tmp_path / "truth", tmp_path / name, fit, 2)
        assert truth[:].shape == output[:].shape == (2, *size, 3)
    with pytest.raises(ValueError, match="other is 30x20, not 60x40 or 20x20"):
        clips.open_pair(tmp_path / "truth", tmp_path / "other", fit, None)


def test_lengths_must_agree_within_the_frames_that_count(tmp_path):
    write_clip(tmp_path / "truth", ramp(3))
    write_clip(tmp_path / "output", ramp(4))
    assert len(clips.open_pair(tmp_path / "truth", tmp_path / "output", Fit("native"), 3)[1]) == 3
    with pytest.raises(ValueError, match="output has 4 frames, its truth has 3"):
        clips.open_pair(tmp_path / "truth", tmp_path / "output", Fit("native"), None)


def test_clips_are_videos_and_folders(tmp_path):
    for name in ("b.mp4", "c.MOV", "notes.txt", ".hidden.mp4", "d.png"):
        (tmp_path / name).touch()
    (tmp_path / "a").mkdir()
    assert list(clips.list_clips(tmp_path)) == ["a", "b", "c"]
    assert list(clips.list_clips(tmp_path, images=True)) == ["a", "b", "c", "d"]


def test_refuses_folders_without_clips_and_names_that_clash(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        clips.list_clips(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no video"):
        clips.list_clips(tmp_path)
    (tmp_path / "a.mp4").touch(), (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="same name"):
        clips.list_clips(tmp_path)


def test_names_that_do_not_match_are_all_named():
    with pytest.raises(ValueError, match="out lacks b, c and has beyond the truth d"):
        clips.match(set("abc"), dict.fromkeys("ad"), "out")


@pytest.mark.parametrize(
    ("name", "count", "first", "sha256"),
    [
        ("davis90", 90, "bear", "879b35119a8c2f79abdcc44b3655e877a1ba91516e1b7a82fd859b4b6ce3cbb2"),
        ("davis50", 50, "bear", "cb29a70bf2d99a7d6ad3606181d69c4141e92bbe68aa5edb35600be0e650422c"),
        ("ytvos508", 508, "0070461469", "82aa37a2b234787700683b88f4a6af0105b72eaa0afbe318739ff97c18e1542f"),
    ],
)
def test_shipped_splits_never_change(name, count, first, sha256):
    split = clips.read_split(name)
    assert (split.name, len(split.clips), split.clips[0], split.sha256) == (name, count, first, sha256)


def test_the_fifty_are_among_the_ninety():
    assert set(clips.read_split("davis50").clips) < set(clips.read_split("davis90").clips)


def test_a_split_from_a_file_and_what_a_folder_lacks_of_it(tmp_path):
    (tmp_path / "mine.txt").write_text("b\n\na\n")
    found, split = clips.choose(dict.fromkeys("abc"), str(tmp_path / "mine.txt"), "folder")
    assert list(found) == ["a", "b"] and split.name == "mine"
    with pytest.raises(ValueError, match="folder lacks 2 of mine: a, b"):
        clips.choose(dict.fromkeys("c"), str(tmp_path / "mine.txt"), "folder")
    everything, split = clips.choose(dict.fromkeys("ba"), None, "folder")
    assert list(everything) == ["b", "a"] and split == clips.Split("all", ("a", "b"))


@pytest.mark.parametrize(("text", "message"), [("a\nb\na\n", "twice a"), ("\n", "names no clip")])
def test_refuses_lists_that_are_none(tmp_path, text, message):
    (tmp_path / "bad.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        clips.read_split(str(tmp_path / "bad.txt"))
    with pytest.raises(ValueError, match="davis50, davis90, ytvos508 or a text file"):
        clips.read_split("davis91")
