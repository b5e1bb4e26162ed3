"""HDR to SDR: PQ and HLG video as 8-bit BT.709, by ITU-R's formulas.

1. Display light in cd/m2: the PQ EOTF, or HLG's inverse OETF and its OOTF of gamma 1.2 for a display of 1000 cd/m2
   (ITU-R BT.2100-2, tables 4 and 5).
2. Tone mapping to 203 cd/m2, the level of graphics white: the EETF of ITU-R BT.2390-10, section 5.4.1, on the largest
   of R, G and B, by which all three are scaled, so that hues stay. The source's peak is its MaxCLL, or else that of its
   mastering display, or else 1000 cd/m2. What is darker than the curve's knee stays as bright as it was.
3. Primaries of BT.2020 or P3-D65 to those of BT.709 in linear light; what lies outside is clipped.
4. The inverse of BT.1886: the power 1/2.4.
"""

import copy

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from m3ddm_jax.video.colour import BT709, FULL, LIMITED, MATRICES, Colour
from m3ddm_jax.video.reader import Reader
from m3ddm_jax.video.source import FrameSource

PQ, HLG = 16, 18  # libav's AVColorTransferCharacteristic
_WHITE = 203.0  # cd/m2 that become the white of SDR
_USUAL_PEAK = 1000.0
_P3_D65 = 12  # libav's AVColorPrimaries
_TO_BT709 = {  # linear R, G, B as rows; ITU-R BT.2087 and SMPTE EG 432-1
    BT709: np.eye(3),
    _P3_D65: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
_FROM_BT2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def to_sdr(source: FrameSource) -> FrameSource:
    """The source with frames of 8-bit BT.709; the source itself, and a note, where it is not HDR."""
    if source.colour.transfer not in (PQ, HLG) or source.pixel_format is None:
        other = copy.copy(source)
        other.notes = [*source.notes, "the source is not HDR: nothing is converted to SDR"]
        return other
    return source.through(_SdrReader(source))


class _SdrReader(Reader):
    def __init__(self, source: FrameSource):
        self._source, self._reformatter = source, VideoReformatter()
        self.fps, self.timestamps, self.durations = source.fps, source.timestamps, source.durations
        self.height, self.width, self.pixel_aspect = source.height, source.width, source.pixel_aspect
        self.clock, self.loops, self.field_order = source.clock, source.loops, source.field_order
        self.notes = (*source.notes, "HDR is converted to SDR: 8-bit BT.709")
        self.colour = Colour(BT709, False, BT709, BT709)
        self._table = hlg_scene_light if source.colour.transfer == HLG else pq_light
        self._table = self._table(np.arange(65536, dtype=np.float32) / 65535)
        self._peak = _peak(source.colour)

    def read(self, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
        colour = self._source.colour
        frame = self._source.native(index)
        pixels = self._reformatter.reformat(
            frame,
            format="rgb48le",
            src_colorspace=MATRICES[colour.matrix][0],
            src_color_range=FULL if colour.full_range else LIMITED,
            dst_color_range=FULL,
        ).to_ndarray()
        light = self._table[pixels]
        if colour.transfer == HLG:
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light *= _USUAL_PEAK * np.maximum(luminance, 1e-6)[..., None] ** 0.2
        shown = sdr_signal(light, self._peak, _TO_BT709.get(colour.primaries, _FROM_BT2020))
        if size is None:
            return shown
        picture = av.VideoFrame.from_ndarray(shown, format="rgb24")
        return self.colour.to_rgb(picture, VideoReformatter(), size)

    def reopen(self) -> "_SdrReader":
        return _SdrReader(self._source.reopen())

    def close(self) -> None:
        self._source.close()


def pq_light(signal: np.ndarray) -> np.ndarray:
    """cd/m2 of a PQ signal in 0..1; the EOTF of ITU-R BT.2100."""
    power = signal ** (1 / np.float32(78.84375))
    return 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (
        1 / np.float32(0.1593017578)
    )


def pq_signal(light: np.ndarray) -> np.ndarray:
    """PQ signal in 0..1 of cd/m2: the inverse of `pq_light`."""
    power = (np.asarray(light) / 10_000) ** 0.1593017578
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_scene_light(signal: np.ndarray) -> np.ndarray:
    """Scene light in 0..1 of an HLG signal in 0..1; the inverse OETF of ITU-R BT.2100."""
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12)


def tone_map(light: np.ndarray, peak: float) -> np.ndarray:
    """cd/m2 in 0..203 of cd/m2 in 0..peak; the EETF of ITU-R BT.2390-10 without black level."""
    top = float(pq_signal(peak))
    level, most = np.minimum(pq_signal(light) / top, 1), float(pq_signal(_WHITE)) / top
    knee = 1.5 * most - 0.5
    t = np.maximum(level - knee, 0) / (1 - knee)
    rolled = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return pq_light(np.where(level < knee, level, rolled) * top)


def sdr_signal(light: np.ndarray, peak: float, matrix: np.ndarray) -> np.ndarray:
    """uint8 [...,3] BT.709 signal of display light [...,3] in cd/m2. matrix: from its primaries to those of BT.709."""
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-4)
    linear = light * (tone_map(brightest, peak) / brightest / _WHITE)
    linear = np.clip(linear @ matrix.T.astype(np.float32), 0, 1)
    return np.rint(255 * linear ** (1 / 2.4)).astype(np.uint8)


def _peak(colour: Colour) -> float:
    """The brightest light of the source in cd/m2, at least that which becomes white."""
    hdr = colour.hdr
    told = [hdr.content_light[0]] if hdr is not None and hdr.content_light is not None else []
    told += [float(hdr.luminance[1])] if hdr is not None and hdr.luminance is not None else []
    peak = next((value for value in told if value > 0), _USUAL_PEAK) if colour.transfer == PQ else _USUAL_PEAK
    return float(np.clip(peak, _WHITE * 1.01, 10_000))
