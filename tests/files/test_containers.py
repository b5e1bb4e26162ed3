import os
import pathlib
import shutil
import socket
import struct
import time
import zlib

import av
import numpy as np
import pytest

from data.encode import encode_video
from m3ddm_jax.files.containers import open_container
from m3ddm_jax.files.limits import LIFT


def frames(source):
    with open_container(source) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="module")
def clip():
    return encode_video(np.zeros((3, 32, 32, 3), np.uint8), 24)


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gif(width, height):
    picture = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255]) + picture


def test_files_and_bytes_are_read(tmp_path, clip):
    for name in ("a.mp4", "a%03d.mp4", "a:b.mp4", "no suffix"):
        (tmp_path / name).write_bytes(clip)
        assert frames(tmp_path / name) == 3
    assert frames(clip) == 3


def test_a_percent_sign_is_no_pattern(tmp_path):
    for name in ("a%d.png", "a1.png", "a2.png"):
        (tmp_path / name).write_bytes(png(8, 8))
    assert frames(tmp_path / "a%d.png") == 1
    with pytest.raises(FileNotFoundError):
        open_container(tmp_path / "b%d.png")


SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video {} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile a.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n",
        SDP.format(5004),
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    ],
)
@pytest.mark.parametrize("name", ["b.mp4", "b.m3u8", "b.sdp", None])
def test_playlists_and_sessions_are_refused(tmp_path, clip, text, name):
    (tmp_path / "a.mp4").write_bytes(clip)
    source = text.encode() if name is None else tmp_path / name
    if name:
        source.write_text(text)
    with pytest.raises((ValueError, av.error.FFmpegError)):
        frames(source)


def test_bytes_of_a_session_open_no_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        start = time.perf_counter()
        with pytest.raises(ValueError, match="a playlist or session"):  # while the port is taken, libav would say so
            open_container(SDP.format(port + port % 2).encode())
        assert time.perf_counter() - start < 1


@pytest.mark.parametrize("make", [png, gif])
def test_a_picture_with_too_many_pixels_is_refused_from_its_header(tmp_path, make, monkeypatch):
    bomb = make(8200, 8200)
    (tmp_path / "bomb").write_bytes(bomb)
    for source in (bomb, tmp_path / "bomb"):
        start = time.perf_counter()
        with pytest.raises(ValueError, match=f"67,108,864 pixels .*{LIFT}"):
            open_container(source)
        assert time.perf_counter() - start < 1
    if make is png:
        monkeypatch.setenv(LIFT, "1")
        assert frames(bomb) == 1


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="a pipe"):
        open_container(tmp_path / "a.mp4")


SHARED = pathlib.Path(__file__).parents[3] / "shared" / "faults" / "reliability"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/faults/reliability")
@pytest.mark.parametrize("name", ["crel.mp4", "x.sdp"])
def test_shared_faults_are_refused(tmp_path, name):
    shutil.copytree(SHARED, tmp_path / "faults")
    for source in (tmp_path / "faults" / name, (SHARED / name).read_bytes()):
        with pytest.raises(ValueError, match="a playlist or session"):
            open_container(source)
