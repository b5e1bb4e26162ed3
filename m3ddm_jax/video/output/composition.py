"""Frames for an encoder: generated pixels around the source's own samples, which are placed as they were decoded."""

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from m3ddm_jax.video.colour import FULL, LIMITED, MATRICES, Colour, is_grey
from m3ddm_jax.video.output.codecs import has_alpha, planar_format
from m3ddm_jax.video.upright import Filters

_ACCURATE = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)

Box = tuple[slice, slice]


class Composer:
    """Turns canvas frames, RGB of 8 bits, into frames of a pixel format.

    pixel_format: of the encoder. colour: how YUV values mean colours. box: rows and columns of the source on the
    canvas. Where the source's frame is given, its samples are placed into the box as they were decoded; where the box
    does not lie on whole chroma samples, luma is placed and chroma resampled, at the source's depth.
    """

    def __init__(self, pixel_format: str, colour: Colour, height: int, width: int, box: Box | None = None):
        self._format = pixel_format
        self._size, self._box = (height, width), box
        self._meaning = {
            "colorspace": MATRICES[colour.matrix][0],
            "color_range": FULL if colour.full_range else LIMITED,
        }
        self._work_format = pixel_format
        if box is not None and not _aligned(box, av.VideoFormat(pixel_format, width, height)):
            self._work_format = _without_subsampling(pixel_format)
        self._from_rgb, self._from_native, self._reduce = (VideoReformatter() for _ in range(3))
        self._pad, self._padded = None, None

    def compose(
        self, frame: np.ndarray, native: av.VideoFrame | None = None, mask: np.ndarray | None = None
    ) -> av.VideoFrame:
        """The canvas frame in the encoder's pixel format.

        frame: uint8 [H,W,3], or [H,W,4] with alpha. native: the source's frame of the box's size, in the pixel format
        that it was decoded to. mask: uint8 [H,W,1], 1 where the canvas frame is shown in the source's place.
        """
        pixels = "rgba" if frame.shape[-1] == 4 else "rgb24"
        generated = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=pixels)
        generated = self._convert(self._from_rgb, generated, self._work_format)
        if native is not None:
            native = self._convert(self._from_native, _in_order(native), self._work_format)
            placed = self._extend(native)
            if placed.format.name != native.format.name:  # the filter does not have this format
                placed = generated
            _copy(placed, native, generated, self._box, mask)
            generated = placed
        return self._convert(self._reduce, generated, self._format)

    def _convert(self, reformatter: VideoReformatter, frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
        """The frame in another pixel format, of the same colours."""
        if _same_samples(frame.format.name, pixel_format):
            return frame
        meaning = {}
        if is_grey(frame.format) and planar_format(pixel_format) is not None:
            return _colour_grey(frame, pixel_format)
        if is_grey(av.VideoFormat(pixel_format)):
            return _luma_of(self._convert(reformatter, frame, _without_subsampling(pixel_format)), pixel_format)
        is_yuv = [planar_format(name) is not None for name in (frame.format.name, pixel_format)]
        for place, yuv in zip(("src", "dst"), is_yuv, strict=True):
            if yuv:
                meaning |= {f"{place}_{key}": value for key, value in self._meaning.items()}
            else:
                meaning[f"{place}_color_range"] = FULL
        return reformatter.reformat(frame, format=pixel_format, interpolation=_ACCURATE, **meaning)

    def _extend(self, native: av.VideoFrame) -> av.VideoFrame:
        """The source's frame on the canvas; what belongs to it, such as captions and field order, stays with it."""
        shape = (native.format.name, native.width, native.height)
        if self._padded != shape:
            (rows, columns), (height, width) = self._box, self._size
            self._pad = Filters(native, [("pad", f"{width}:{height}:{columns.start}:{rows.start}")])
            self._padded = shape
        return next(self._pad.push(native))


def _colour_grey(frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """Grey as luma of a YUV format, with colourless chroma; libswscale takes all grey for full-range."""
    coloured = av.VideoFrame(frame.width, frame.height, pixel_format)
    depth, new_depth = frame.format.components[0].bits, coloured.format.components[0].bits
    order = ">" if frame.format.is_big_endian else "<"
    samples = np.frombuffer(frame.planes[0], np.uint8 if depth == 8 else f"{order}u2").reshape(frame.height, -1)
    parts = len(frame.format.components)
    luma, *alpha = (samples[:, part : frame.width * parts : parts].astype(np.uint32) for part in range(parts))
    new, *chroma = _planes(coloured)
    new[:] = luma << new_depth >> depth
    for plane in chroma[:2]:
        plane[:] = 1 << (new_depth - 1)
    for plane in chroma[2:]:
        plane[:] = alpha[0] << new_depth >> depth if alpha else (1 << new_depth) - 1
    return coloured


def _luma_of(frame: av.VideoFrame, pixel_format: str) -> av.VideoFrame:
    """The luma, and alpha, of a 4:4:4 frame as grey of the same depth."""
    grey = av.VideoFrame(frame.width, frame.height, pixel_format)
    luma, _, _, *alpha = _planes(frame)
    (target,) = _planes(grey)
    target[:] = np.stack([luma, *alpha], axis=-1) if alpha else luma
    return grey


def _in_order(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with its lines in memory from the top on; libavfilter flips a frame by reading it backwards."""
    if frame.planes[0].line_size > 0:
        return frame
    return next(Filters(frame, [("copy", "")]).push(frame))


def _copy(
    placed: av.VideoFrame, native: av.VideoFrame, generated: av.VideoFrame, box: Box, mask: np.ndarray | None
) -> None:
    """Copies the source's samples into the box, and the generated ones around it and where a pixel is masked."""
    placed.make_writable()
    planes = [_planes(frame) for frame in (placed, native, generated)]
    for target, known, other, (down, across) in zip(*planes, _steps(placed.format), strict=True):
        rows, columns = (
            slice(part.start // n, -(-part.stop // n)) for part, n in zip(box, (down, across), strict=True)
        )
        around = np.s_[: rows.start], np.s_[rows.stop :], np.s_[rows, : columns.start], np.s_[rows, columns.stop :]
        for strip in around:
            target[strip] = other[strip]
        if mask is not None:
            shown = _reduced(mask[..., 0][box] != 0, down, across).reshape(known.shape[:2] + (1,) * (known.ndim - 2))
            known = np.where(shown, other[rows, columns], known)
        target[rows, columns] = known  # also the last line of an odd number, which the filter leaves out


def _reduced(mask: np.ndarray, down: int, across: int) -> np.ndarray:
    """Whether any of the pixels of a chroma sample is masked: bool [h/down, w/across]."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % down), (0, -width % across)), "edge")
    return padded.reshape(len(padded) // down, down, -1, across).any(axis=(1, 3))


def _planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Views of a frame's planes: [h,w] samples, or [h,w,bytes] of packed pixels."""
    described, planes = frame.format, []
    for plane in frame.planes:
        if len(frame.planes) == 1 and len(described.components) > 1:
            size = described.padded_bits_per_pixel // 8
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width * size]
            planes.append(_pixels(rows, plane.width, size))
            continue
        dtype = np.uint8 if described.components[0].bits <= 8 else np.uint16
        rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype().itemsize)
        planes.append(rows[: plane.height, : plane.width])
    return planes


def _pixels(rows: np.ndarray, width: int, size: int) -> np.ndarray:
    """View [h,w,size] of rows [h,w*size] whose lines may have padding behind them."""
    height, line = len(rows), rows.strides[0]
    return np.lib.stride_tricks.as_strided(rows, (height, width, size), (line, size, 1))


def _steps(pixel_format: av.VideoFormat) -> list[tuple[int, int]]:
    """(rows, columns) of pixels for one sample of each plane."""
    chroma = (8 // pixel_format.chroma_height(8), 8 // pixel_format.chroma_width(8))
    count = 1 + max(component.plane for component in pixel_format.components)
    return [chroma if plane in (1, 2) else (1, 1) for plane in range(count)]


def _aligned(box: Box, pixel_format: av.VideoFormat) -> bool:
    return all(part.start % n == 0 for step in _steps(pixel_format) for part, n in zip(box, step, strict=True))


def _without_subsampling(pixel_format: str) -> str:
    """The 4:4:4 format of the same depth, with alpha where the format has it."""
    bits = av.VideoFormat(pixel_format).components[0].bits
    return f"yuv{'a' if has_alpha(pixel_format) else ''}444p{'' if bits == 8 else f'{bits}le'}"


def _same_samples(name: str, other: str) -> bool:
    """Whether planes of one format are planes of the other; yuvj only says that the range is full."""
    return name.replace("yuvj", "yuv") == other.replace("yuvj", "yuv")
