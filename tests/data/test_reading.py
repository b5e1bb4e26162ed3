"""What training reads: the frames that outpainting sees, from files and from bytes."""

import io

import av
import numpy as np
import pytest

from data import reading, sources
from data.encode import encode_video
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.decoding import Stream


@pytest.fixture(scope="module")
def frames(moving_frames):
    return moving_frames(30)


@pytest.fixture(scope="module")
def encoded(frames):
    return encode_video(frames, 30000 / 1001, crf=4, keyframe_interval=8)


def test_what_is_known_before_pixels_are_read(encoded, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encoded)
    for media in (encoded, path, str(path)):
        info = reading.describe(sources.index_video(media))
        assert info[0] == 30 and info[2:] == (32, 48) and info.fps == pytest.approx(30000 / 1001)


def test_frames_come_in_the_order_asked_with_repeats(encoded, frames):
    whole = reading.read_media(encoded, range(30))
    assert whole.dtype == np.uint8 and whole.shape == frames.shape
    assert np.abs(whole.astype(int) - frames).mean() < 4
    indices = [29, 0, 9, 8, 7, 9, 23]
    assert (reading.read_media(encoded, indices) == whole[indices]).all()
    index = sources.index_video(encoded)
    assert (reading.read_frames(index, [17]) == whole[[17]]).all()
    assert (reading.read_frames(index, [3]) == whole[[3]]).all()


def test_training_sees_what_outpainting_sees(encoded, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encoded)
    assert (reading.read_media(encoded, range(30)) == FrameSource(path)[:]).all()


def test_a_jump_to_a_keyframe_saves_frames(encoded, monkeypatch):
    decoded, frames = [], Stream.frames
    source = sources.index_video(encoded)

    def counted(self):
        for frame in frames(self):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(Stream, "frames", counted)
    reading.read_frames(source, [1, 25])
    assert len(decoded) <= 4


def test_frames_are_scaled_to_the_size_asked(encoded):
    small = reading.read_media(encoded, [3, 20], size=(10, 26))
    assert small.shape == (2, 10, 26, 3)
    assert small.mean() == pytest.approx(reading.read_media(encoded, [3, 20]).mean(), abs=2)


def test_pixels_become_square(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = 2
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[0], format="rgb24")))
        container.mux(stream.encode(None))
    assert reading.describe(sources.index_video(buffer.getvalue()))[2:] == (32, 96)
    assert reading.read_media(buffer.getvalue(), [0]).shape == (1, 32, 96, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (720, 64)])
def test_colours_of_written_clips_hold(height, width):
    frame = np.full((1, height, width, 3), (200, 60, 40), np.uint8)
    encoded = encode_video(frame, 24, crf=1)
    assert np.abs(reading.read_media(encoded, [0]).astype(int) - frame).max() <= 4
    source = FrameSource(encoded)
    assert (source.colour.matrix, source.colour.primaries, source.colour.transfer) == (1, 1, 1)
    assert not source.colour.full_range


def test_untagged_bt709_of_720_lines_is_read_as_such():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        frame = av.VideoFrame(64, 720, "yuv420p")
        for plane, value in zip(frame.planes, (92, 105, 190), strict=True):  # BT.709 of (200, 60, 40)
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.abs(reading.read_media(buffer.getvalue(), [0])[0, 9, 9].astype(int) - (200, 60, 40)).max() <= 4


def test_unusable_videos_are_refused_with_one_line(tmp_path, encoded):
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("this is no video\n" * 50)
    empty.touch()
    for media in (text, empty, tmp_path / "missing.mp4", encoded[: len(encoded) // 3]):
        with pytest.raises(ValueError, match="no readable video|no file or folder") as caught:
            reading.read_media(media, [0])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indices", [[30], [-1], []])
def test_indices_outside_the_video_are_refused(encoded, indices):
    with pytest.raises(ValueError, match="30 frames"):
        reading.read_media(encoded, indices)


def test_encoding_refuses_what_it_cannot_hold(frames):
    with pytest.raises(ValueError, match="even"):
        encode_video(frames[:, :31], 24)
    with pytest.raises(ValueError, match="no frames"):
        encode_video([], 24)
    with pytest.raises(ValueError, match="all be 32x48"):
        encode_video([frames[0], frames[0, :16]], 24)
