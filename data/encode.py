"""Encoding with PyAV: RGB frames to H.264."""

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.colour import BT709, Colour

SRGB_VIDEO = Colour(matrix=BT709, primaries=BT709, transfer=BT709)  # what players take RGB for


class EncodedClip(NamedTuple):
    """One record: the bytes of a video file, where it is from, and what a reader must know before decoding it.

    A long shot is stored in several parts, which have no frame in common. shot: name of its first part; part, parts:
    number of this one, from 0, and of all; shot_frames: of all parts together.
    """

    video: bytes
    name: str
    num_frames: int
    fps: float
    height: int
    width: int
    shot: str
    part: int
    parts: int
    shot_frames: int


def part_borders(shot_frames: int, parts: int) -> list[int]:
    """The first frame of each part of a shot, and the end of the last: parts are of equal length, but for a frame."""
    return np.linspace(0, shot_frames, parts + 1).round().astype(int).tolist()


def encode_video(
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    crf: int = 18,
    keyframe_interval: int = 12,
    colour: Colour = SRGB_VIDEO,
) -> bytes:
    """Encodes uint8 [h,w,3] RGB frames of one size, both sides even, as the bytes of an mp4 file with colour tags.

    crf: quality, 0 is lossless but for chroma, 51 the worst. keyframe_interval: frames between points where decoding
    can begin. colour: what the file says of its colours, and how RGB becomes YUV. Raises ValueError for odd sides, for
    frames of several sizes and for no frames.
    """
    buffer, stream, reformatter = io.BytesIO(), None, VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        for frame in frames:
            if stream is None:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ValueError(f"sides must be even to be encoded, found {height}x{width}")
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
                # without B-frames a seek decodes less
                stream.options = {"crf": str(crf), "preset": "veryfast", "g": str(keyframe_interval), "bf": "0"}
                stream.codec_context.thread_count = 1
                colour.tag(stream.codec_context)
            if frame.shape != (height, width, 3):
                raise ValueError(f"frames must all be {height}x{width}, found {frame.shape[:2]}")
            container.mux(stream.encode(colour.from_rgb(frame, "yuv420p", reformatter)))
        if stream is None:
            raise ValueError("there are no frames to encode")
        container.mux(stream.encode(None))
    return buffer.getvalue()
