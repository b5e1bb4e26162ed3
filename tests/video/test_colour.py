import av
import numpy as np
import pytest

from m3ddm_jax.video import FrameSink, FrameSource

COLOURS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (90, 90, 90), (255, 255, 255), (0, 0, 0), (20, 200, 220)]
)
LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # ITU-R BT.709, 601, 2020


def to_yuv(rgb, matrix, full_range):
    """ITU-R's equations for 8 bits."""
    red_weight, blue_weight = LUMA[matrix]
    red, green, blue = rgb / 255
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    chroma = np.array([(blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)])
    scaled = [luma * 255, *(chroma * 255 + 128)] if full_range else [16 + 219 * luma, *(128 + 224 * chroma)]
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def write_colours(path, matrix, full_range, size=(64, 64)):
    """One frame of each colour, as the YUV values that a description gives them, all but lossless."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.color_range, codec.colorspace = 2 if full_range else 1, matrix
        for colour in COLOURS:
            frame = av.VideoFrame(size[1], size[0], "yuv420p")
            values = to_yuv(colour, matrix if matrix in LUMA else (1 if size[0] >= 720 else 6), full_range)
            for plane, value in zip(frame.planes, values, strict=True):
                plane.update(np.full(plane.buffer_size, value, np.uint8).tobytes())
            frame.color_range = codec.color_range
            frame.colorspace = matrix
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def yuv_of(path):
    """Y, U and V in the middle of each frame, and the description of the stream."""
    with av.open(str(path)) as container:
        values = []
        for frame in container.decode(video=0):
            middle = [
                np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[
                    plane.height // 2, plane.width // 2
                ]
                for plane in frame.planes
            ]
            values.append(middle)
        codec = container.streams.video[0].codec_context
        return np.array(values, int), (codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_range_and_matrix_are_read_and_kept(tmp_path, matrix, full_range, suffix):
    path, copy = tmp_path / "colours.mp4", tmp_path / f"copy{suffix}"
    write_colours(path, matrix, full_range)
    source = FrameSource(path)
    frames = source[:]
    assert np.abs(frames[:, 32, 32].astype(int) - COLOURS).max() <= 3
    with FrameSink(copy, source.fps, 64, 64, source=source) as sink:
        sink.write(frames)
    before, described = yuv_of(path)
    after, described_after = yuv_of(copy)
    assert np.abs(before - after).max() <= 2
    assert described_after == described or (suffix == ".webm" and described_after[:2] == described[:2])
    assert np.abs(FrameSource(copy)[:][:, 32, 32].astype(int) - COLOURS).max() <= 5


@pytest.mark.parametrize(("size", "matrix"), [((64, 64), 6), ((720, 64), 1)])
def test_what_is_not_said_is_what_players_take_it_for(tmp_path, size, matrix):
    path, copy = tmp_path / "untagged.mp4", tmp_path / "copy.mp4"
    write_colours(path, 2, False, size)
    source = FrameSource(path)
    assert source.colour.matrix == matrix and not source.colour.full_range
    assert np.abs(source[:][:, 32, 32].astype(int) - COLOURS).max() <= 3
    with FrameSink(
        copy, source.fps, 800, 64, source=source
    ) as sink:  # a canvas that players would take for another one
        sink.write(np.zeros((1, 800, 64, 3), np.uint8))
    assert yuv_of(copy)[1][1] == matrix, "said from now on"


def test_images_become_limited_bt709(tmp_path):
    frames = np.repeat(np.repeat(COLOURS[:, None, None].astype(np.uint8), 64, axis=1), 64, axis=2)
    with FrameSink(tmp_path / "images", 24, 64, 64) as sink:
        sink.write(frames)
    source = FrameSource(tmp_path / "images")
    with FrameSink(tmp_path / "video.mp4", 24, 64, 64, source=source) as sink:
        sink.write(source[:])
    values, described = yuv_of(tmp_path / "video.mp4")
    assert described[:2] == (1, 1)
    assert np.abs(values - [to_yuv(colour, 1, False).astype(int) for colour in COLOURS]).max() <= 2
