import struct
import zlib

import av
import cv2
import numpy as np
import pytest

from m3ddm_jax.video import FrameSource
from tests.video.ffmpeg import ffmpeg_frames, native_frames

STORED = np.zeros((48, 64, 3), np.uint8)
STORED[:24, :32], STORED[:24, 32:], STORED[24:, :32], STORED[24:][:, 32:] = (200, 0, 0), (0, 200, 0), (0, 0, 200), 255
# EXIF orientation -> what is shown of a stored picture
SHOWN = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.transpose(1, 0, 2),
    6: np.rot90(STORED, -1),
    7: STORED[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(STORED),
}


def exif(orientation):
    """The smallest EXIF block that says an orientation."""
    return b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HH", orientation, 0) + bytes(4)


def as_jpeg(orientation):
    data = cv2.imencode(".jpg", STORED[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    block = b"Exif\0\0" + exif(orientation)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def as_png(orientation):
    data, block = cv2.imencode(".png", STORED[..., ::-1])[1].tobytes(), b"eXIf" + exif(orientation)
    chunk = struct.pack(">I", len(block) - 4) + block + struct.pack(">I", zlib.crc32(block))
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("encode", [as_jpeg, as_png])
@pytest.mark.parametrize("orientation", SHOWN)
def test_exif_orientations(encode, orientation):
    source = FrameSource(encode(orientation))
    shown = SHOWN[orientation]
    assert (len(source), source.height, source.width) == (1, *shown.shape[:2])
    assert np.abs(source[:][0].astype(int) - shown).mean() < 2
    assert (source.native(0).height, source.native(0).width) == shown.shape[:2]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotations_with_flips_are_those_of_ffmpeg(tmp_path, degrees, hflip, pixel_format):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixel_format
        stream.set_display_rotation(degrees, hflip=hflip)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(STORED, format="rgb24")))
        container.mux(stream.encode(None))
    source = FrameSource(path)
    frames = native_frames(source)
    assert source.pixel_format == pixel_format
    assert frames == ffmpeg_frames(path, pixel_format, len(frames[0]))
    turned = STORED[:, ::-1] if hflip else STORED
    assert np.abs(source[:][0].astype(int) - np.rot90(turned, degrees // 90)).mean() < 6 or hflip


def with_clean_aperture(data, left, top, width, height):
    """An mp4 of one 64x48 track with the box that crops it; the file's index must be at its end."""
    offset = [2 * left + width - 64, 2 * top + height - 48]
    numbers = (width, 1, height, 1, offset[0] & 0xFFFFFFFF, 2, offset[1] & 0xFFFFFFFF, 2)
    box = struct.pack(">I4s8I", 40, b"clap", *numbers)
    data, place, opened = bytearray(data), 0, []
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while data[place + 4 : place + 8] != name:
            place += struct.unpack_from(">I", data, place)[0]
        opened.append(place)
        end = place + struct.unpack_from(">I", data, place)[0]
        place += 16 if name == b"stsd" else 8
    for place in opened:
        struct.pack_into(">I", data, place, struct.unpack_from(">I", data, place)[0] + len(box))
    return bytes(data[:end] + box + data[end:])


def test_clean_aperture_of_an_mp4_is_applied(tmp_path, make_video, counted):
    path = make_video(tmp_path / "whole.mp4", counted(3))
    whole = FrameSource(path)[:]
    cropped = FrameSource(with_clean_aperture(path.read_bytes(), left=12, top=2, width=48, height=40))
    np.testing.assert_array_equal(cropped[:], whole[:, 2:42, 12:60])


def test_the_default_of_several_tracks_is_read(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for height, width in ((96, 128), (48, 64)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for stream in streams:
            frame = av.VideoFrame.from_ndarray(np.zeros((stream.height, stream.width, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    source = FrameSource(path)
    assert (source.height, source.width) == (48, 64)
    assert source.notes == [f"{path}: uses video track 2 of 2, the default one"]
