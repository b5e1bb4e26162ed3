import io
from fractions import Fraction

import av
import numpy as np
import pytest

from data import decode
from data.encode import encode_video


@pytest.fixture(scope="module")
def frames(moving_frames):
    return moving_frames(30)


@pytest.fixture(scope="module")
def encoded(frames):
    return encode_video(frames, 30000 / 1001, crf=4, keyframe_interval=8)


def test_probe_tells_length_rate_size_and_keyframes(encoded, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(encoded)
    for source in (encoded, path, str(path)):
        info = decode.probe(source)
        assert (info.num_frames, info.height, info.width) == (30, 32, 48)
        assert info.fps == pytest.approx(30000 / 1001)
        assert info.packets.keyframes.tolist() == [0, 8, 16, 24]


def test_frames_come_in_the_order_asked_with_repeats(encoded, frames):
    whole = decode.decode_clip(encoded, range(30))
    assert whole.dtype == np.uint8 and whole.shape == frames.shape
    assert np.abs(whole.astype(int) - frames).mean() < 3
    indices = [29, 0, 9, 8, 7, 9, 23]
    assert (decode.decode_clip(encoded, indices) == whole[indices]).all()
    assert (decode.decode_clip(encoded, [17], packets=decode.probe(encoded).packets) == whole[[17]]).all()


def test_a_jump_to_a_keyframe_saves_frames(encoded, monkeypatch):
    counted = []
    video_stream = decode._video_stream

    class Counting:
        def __init__(self, container):
            self._container = container

        def __getattr__(self, name):
            return getattr(self._container, name)

        def decode(self, stream):
            for frame in self._container.decode(stream):
                counted.append(frame)
                yield frame

    monkeypatch.setattr(decode, "_video_stream", lambda container: video_stream(container))
    enter = decode._opened.__enter__
    monkeypatch.setattr(decode._opened, "__enter__", lambda self: Counting(enter(self)))
    decode.decode_clip(encoded, [1, 25])
    assert len(counted) <= 4


def test_frames_are_scaled_to_the_size_asked(encoded):
    small = decode.decode_clip(encoded, [3, 20], size=(10, 26))
    assert small.shape == (2, 10, 26, 3)
    whole = decode.decode_clip(encoded, [3, 20])
    assert small.mean() == pytest.approx(whole.mean(), abs=2)


def test_one_frame():
    frame = np.full((1, 16, 16, 3), (200, 30, 90), np.uint8)
    decoded = decode.decode_clip(encode_video(frame, 24, crf=1), [0])
    assert decode.probe(encode_video(frame, 24)).num_frames == 1
    assert np.abs(decoded.astype(int) - frame).max() <= 4


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotated_video_comes_upright(frames, turns):
    upright = frames[:4]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stored = np.rot90(upright, -turns, axes=(1, 2))  # as a camera held sideways stores it
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = stored.shape[1:3]
        stream.options = {"crf": "4"}
        stream.set_display_rotation(90 * turns)
        for frame in stored:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    info = decode.probe(buffer.getvalue())
    assert (info.height, info.width) == upright.shape[1:3]
    decoded = decode.decode_clip(buffer.getvalue(), range(4))
    assert np.abs(decoded.astype(int) - upright).mean() < 4


@pytest.mark.parametrize(("container_format", "codec"), [("avi", "mpeg4"), ("matroska", "libx264"), ("gif", "gif")])
def test_other_containers(frames, container_format, codec):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.bit_rate = 32, 48, 4_000_000
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    decoded = decode.decode_clip(buffer.getvalue(), [20, 3])
    assert np.abs(decoded.mean(axis=(1, 2, 3)) - frames[[20, 3]].mean(axis=(1, 2, 3))).max() < 4


def test_unusable_videos_are_refused_with_one_line(tmp_path, encoded):
    text = tmp_path / "text.mp4"
    text.write_text("this is no video\n" * 50)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for source in (text, empty, tmp_path / "missing.mp4", encoded[: len(encoded) // 3]):
        for read in (decode.probe, lambda source: decode.decode_clip(source, [0])):
            with pytest.raises(ValueError, match="not a readable video|no frames|cannot be decoded") as caught:
                read(source)
            assert "\n" not in str(caught.value)


def test_a_file_with_sound_alone_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="no video stream"):
        decode.probe(buffer.getvalue())


@pytest.mark.parametrize("indices", [[30], [-1], []])
def test_indices_outside_the_video_are_refused(encoded, indices):
    with pytest.raises(ValueError, match="30 frames"):
        decode.decode_clip(encoded, indices)


def test_a_changing_frame_size_is_refused(frames):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        for time, size in enumerate([(32, 48), (32, 48), (16, 32)]):
            encoder = av.CodecContext.create("mjpeg", "w")  # a JPEG carries its own size
            encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = *size, "yuvj420p", Fraction(1, 24)
            frame = np.ascontiguousarray(frames[time, : size[0], : size[1]])
            packet = encoder.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuvj420p"))[0]
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, time, time, Fraction(1, 24)
            container.mux(packet)
    assert decode.decode_clip(buffer.getvalue(), [0, 1]).shape == (2, 32, 48, 3)
    with pytest.raises(ValueError, match=r"size changes from \(32, 48\) to \(16, 32\)"):
        decode.decode_clip(buffer.getvalue(), [0, 1, 2])


def test_encoding_refuses_what_it_cannot_hold(frames):
    with pytest.raises(ValueError, match="even"):
        encode_video(frames[:, :31], 24)
    with pytest.raises(ValueError, match="no frames"):
        encode_video([], 24)
    with pytest.raises(ValueError, match="all be 32x48"):
        encode_video([frames[0], frames[0, :16]], 24)
