"""How a video's values mean colours: range, matrix, primaries and transfer, kept so that no colour shifts."""

import dataclasses
import re
import struct
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from m3ddm_jax.video.upright import side_data

FULL, LIMITED = 2, 1  # as in libav's AVColorRange
UNSPECIFIED = 2  # as in libav's AVColorSpace, AVColorPrimaries and AVColorTransferCharacteristic

# libav's AVColorSpace -> (libswscale's matrix, its name for the scale filter)
MATRICES = {
    1: (Colorspace.ITU709, "bt709"),
    4: (Colorspace.FCC, "fcc"),
    5: (Colorspace.ITU601, "bt601"),
    6: (Colorspace.ITU601, "bt601"),
    7: (Colorspace.SMPTE240M, "smpte240m"),
    9: (Colorspace.BT2020, "bt2020"),
    10: (Colorspace.BT2020, "bt2020"),
}
BT709, SMPTE170M = 1, 6
HD_LINES = 720  # players take untagged video of fewer lines for BT.601
_STILLS = {"png", "apng", "bmp", "tiff", "webp", "gif", "targa", "pgm", "pam", "ffv1", "rawvideo", "huffyuv", "ffvhuff"}

# libswscale converts these to RGB many times as fast as others, and within 3 code values, where it need not be accurate
_FAST_FORMATS = {"yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p"}
_FAST = Interpolation.BICUBIC
_ACCURATE = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


@dataclasses.dataclass(frozen=True)
class Hdr:
    """Static HDR metadata of SMPTE ST 2086 and CTA-861.3.

    primaries: CIE 1931 (x, y) of red, green, blue; white: of the white point; luminance: (least, most) of the mastering
    display in cd/m2; any of them None where it is not known. content_light: (MaxCLL, MaxFALL) in cd/m2, or None.
    """

    primaries: tuple[tuple[Fraction, Fraction], ...] | None = None
    white: tuple[Fraction, Fraction] | None = None
    luminance: tuple[Fraction, Fraction] | None = None
    content_light: tuple[int, int] | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Hdr | None":
        """That of a frame, or None where it has none."""
        display, light = (
            side_data(frame, kind) for kind in (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL)
        )
        found = {}
        if display is not None:  # struct AVMasteringDisplayMetadata: ten rational numbers and two flags
            *numbers, has_primaries, has_luminance = struct.unpack_from("=22i", bytes(display))
            values = [Fraction(*numbers[i : i + 2]) if numbers[i + 1] else Fraction(0) for i in range(0, 20, 2)]
            if has_primaries:
                found["primaries"] = tuple(zip(values[0:6:2], values[1:6:2], strict=True))
                found["white"] = tuple(values[6:8])
            if has_luminance:
                found["luminance"] = tuple(values[8:10])
        if light is not None:
            found["content_light"] = struct.unpack_from("=2I", bytes(light))
        return cls(**found) if found else None


@dataclasses.dataclass(frozen=True)
class Colour:
    """Colour description of a video stream, in the numbers of libav (which are those of ITU-T H.273).

    chroma_location: libav's name of where chroma samples lie, or None where it is not said.
    """

    matrix: int = BT709
    full_range: bool = False
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    chroma_location: str | None = None
    hdr: Hdr | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame, codec: av.VideoCodecContext, chroma_location: str | None = None) -> "Colour":
        """What a stream says, and where it says nothing what players take it for."""
        tags = (int(codec.color_primaries), int(codec.color_trc), chroma_location, Hdr.of(frame))
        if not (is_yuv(frame.format) or is_grey(frame.format)):
            return cls(BT709, False, *tags)  # RGB: written as limited-range BT.709 where it becomes YUV
        matrix = int(frame.colorspace)
        if matrix not in MATRICES:
            matrix = BT709 if frame.height >= HD_LINES else SMPTE170M
        full_range = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
        if is_grey(frame.format) and int(frame.color_range) not in (FULL, LIMITED):
            full_range = codec.name in _STILLS
        return cls(matrix, full_range, *tags)

    def to_rgb(
        self, frame: av.VideoFrame, reformatter: VideoReformatter, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Pixels of a decoded frame, scaled to size (height, width) where one is given: uint8 [h,w,3], RGB.

        The pixels are those of ffmpeg: in 8-bit 4:2:0 and 4:2:2 all pixels of a chroma value share it.
        """
        height, width = size or (frame.height, frame.width)
        scales = (height, width) != (frame.height, frame.width)
        meaning = {}
        if is_grey(frame.format):
            frame = self._grey_to_rgb(frame)
        elif is_yuv(frame.format):
            meaning = {
                "src_colorspace": MATRICES[self.matrix][0],
                "src_color_range": FULL if self.full_range else LIMITED,
                "dst_color_range": FULL,
            }
        meaning["interpolation"] = _FAST if frame.format.name in _FAST_FORMATS else _ACCURATE
        if scales:
            meaning["interpolation"] = Interpolation.AREA  # averages what it shrinks
        return reformatter.reformat(frame, width, height, "rgb24", **meaning).to_ndarray()

    def from_rgb(self, pixels: np.ndarray, pixel_format: str, reformatter: VideoReformatter) -> av.VideoFrame:
        """A frame of this description, in a YUV format of any depth, of pixels uint8 [h,w,3]."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        return reformatter.reformat(
            frame,
            format=pixel_format,
            dst_colorspace=MATRICES[self.matrix][0],
            src_color_range=FULL,
            dst_color_range=FULL if self.full_range else LIMITED,
            interpolation=_ACCURATE,
        )

    def tag(self, codec: av.VideoCodecContext) -> None:
        """Say so in a stream that is to be encoded."""
        codec.color_range = FULL if self.full_range else LIMITED
        codec.colorspace, codec.color_primaries, codec.color_trc = self.matrix, self.primaries, self.transfer

    def _grey_to_rgb(self, frame: av.VideoFrame) -> av.VideoFrame:
        """libswscale takes all grey for full-range."""
        bits = frame.format.components[0].bits
        top, scale = (2**bits - 1, 255) if self.full_range else (219 << (bits - 8), 255)
        black = 0 if self.full_range else 16 << (bits - 8)
        table = np.clip(np.rint((np.arange(2**bits) - black) * (scale / top)), 0, 255).astype(np.uint8)
        order = ">" if frame.format.is_big_endian else "<"
        samples = np.frombuffer(frame.planes[0], np.uint8 if bits == 8 else f"{order}u2")
        samples = samples.reshape(frame.height, -1)
        step = len(frame.format.components)
        luma = samples[:, : frame.width * step : step]
        return av.VideoFrame.from_ndarray(np.repeat(table[luma][..., None], 3, axis=-1), format="rgb24")

    def to_yuv_filter(self) -> tuple[str, str]:
        """Filter (name, arguments) that turns RGB into YUV of this description."""
        out_range = "pc" if self.full_range else "tv"
        matrix = MATRICES[self.matrix][1]
        flags = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"
        return "scale", f"in_range=pc:out_range={out_range}:out_color_matrix={matrix}:flags={flags}"


def is_grey(pixel_format: av.VideoFormat) -> bool:
    """Whether a format is luma of 8 to 16 bits, with or without alpha."""
    return re.fullmatch(r"gray\d*(le|be)?|ya\d+(le|be)?", pixel_format.name) is not None


def is_yuv(pixel_format: av.VideoFormat) -> bool:
    """Whether a format has luma and chroma."""
    other = pixel_format.is_rgb or pixel_format.is_bayer or pixel_format.name.startswith("xyz")
    return len(pixel_format.components) >= 3 and not other
