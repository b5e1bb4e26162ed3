"""How a video's YUV values mean colours: range and matrix, kept from source to output so that no colour shifts."""

import dataclasses

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

FULL, LIMITED = 2, 1  # as in libav's AVColorRange
UNSPECIFIED = 2  # as in libav's AVColorPrimaries and AVColorTransferCharacteristic

# libav's AVColorSpace -> (libswscale's matrix, its name for the scale filter)
MATRICES = {
    1: (Colorspace.ITU709, "bt709"),
    4: (Colorspace.FCC, "fcc"),
    5: (Colorspace.ITU601, "bt601"),
    6: (Colorspace.ITU601, "bt601"),
    7: (Colorspace.SMPTE240M, "smpte240m"),
    9: (Colorspace.BT2020, "bt2020"),
}
BT709, SMPTE170M = 1, 6
HD_LINES = 720  # players take untagged video of fewer lines for BT.601

ACCURATE = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


@dataclasses.dataclass(frozen=True)
class Colour:
    """Colour description of a video stream, in the numbers of libav (which are those of ITU-T H.273)."""

    matrix: int = BT709
    full_range: bool = False
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @classmethod
    def of(cls, frame: av.VideoFrame, codec: av.VideoCodecContext) -> "Colour":
        """What a stream says, and where it says nothing what players take it for."""
        if not _is_yuv(frame.format):
            return cls()  # images: written as limited-range BT.709 where they become a video
        matrix = int(frame.colorspace)
        if matrix not in MATRICES:
            matrix = BT709 if frame.height >= HD_LINES else SMPTE170M
        full_range = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")
        return cls(matrix, full_range, int(codec.color_primaries), int(codec.color_trc))

    def to_rgb(self, frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
        """Pixels of a decoded frame: uint8 [h,w,3], RGB."""
        meaning = {}
        if _is_yuv(frame.format):
            meaning = {
                "src_colorspace": MATRICES[self.matrix][0],
                "src_color_range": FULL if self.full_range else LIMITED,
                "dst_color_range": FULL,
            }
        return reformatter.reformat(frame, format="rgb24", interpolation=ACCURATE, **meaning).to_ndarray()

    def to_yuv_filter(self) -> tuple[str, str]:
        """Filter (name, arguments) that turns RGB into YUV of this description."""
        out_range = "pc" if self.full_range else "tv"
        matrix = MATRICES[self.matrix][1]
        flags = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd"
        return "scale", f"in_range=pc:out_range={out_range}:out_color_matrix={matrix}:flags={flags}"


def _is_yuv(pixel_format: av.VideoFormat) -> bool:
    return not pixel_format.is_rgb and any(component.is_chroma for component in pixel_format.components)
