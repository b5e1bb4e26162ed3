"""Codec, pixel format and quality of an output: what containers hold, what encoders accept, what the defaults are."""

import dataclasses
from collections.abc import Mapping

import av
from av.codec import find_best_pix_fmt_of_list


@dataclasses.dataclass(frozen=True)
class Codec:
    """An encoder of libav. quality: lowest, highest and default value of `option`; None: the encoder has no quality.

    alpha: the encoder's pixel formats with an alpha plane that decoders read back.
    """

    encoder: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    option: str = "crf"
    quality: tuple[int, int, int] | None = None
    alpha: tuple[str, ...] = ()


CODECS = {
    "h264": Codec("libx264", {"preset": "medium"}, quality=(0, 51, 16)),
    "hevc": Codec("libx265", {"preset": "medium"}, quality=(0, 51, 18)),
    "av1": Codec("libsvtav1", {"preset": "8"}, quality=(1, 63, 22)),
    "vp9": Codec(
        "libvpx-vp9",
        {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        quality=(0, 63, 20),
        alpha=("yuva420p",),
    ),
    "prores": Codec("prores_ks", {"vendor": "apl0"}, alpha=("yuva444p10le",)),
    "ffv1": Codec(
        "ffv1",
        {"level": "3", "slicecrc": "1", "g": "1"},
        alpha=("bgra", "yuva420p", "yuva422p", "yuva444p")
        + tuple(f"yuva{chroma}p{bits}le" for chroma in (420, 422, 444) for bits in (10, 12, 16))
        + ("ya8", "gbrap10le", "gbrap12le", "gbrap14le", "gbrap16le"),
    ),
    "gif": Codec("gif", alpha=("pal8",)),
    "png": Codec("png", {"compression_level": "1", "pred": "up"}, alpha=("rgba", "rgba64be", "ya8", "ya16be")),
    "jpeg": Codec("mjpeg", option="qscale", quality=(1, 31, 2)),
    "webp": Codec("libwebp", option="quality", quality=(0, 100, 95), alpha=("bgra", "yuva420p")),
}


@dataclasses.dataclass(frozen=True)
class Container:
    """A container of video. codecs: the default for 8 bits, for more, and for alpha (None: alpha is composited)."""

    format: str
    codecs: tuple[str, ...]
    defaults: tuple[str, str, str | None]
    sound: str | None = "aac"
    subtitles: str | None = None


CONTAINERS = {
    ".mp4": Container("mp4", ("h264", "hevc", "av1", "vp9"), ("h264", "hevc", None), subtitles="mov_text"),
    ".mov": Container("mov", ("h264", "hevc", "prores"), ("h264", "hevc", "prores"), subtitles="mov_text"),
    ".mkv": Container(
        "matroska", ("h264", "hevc", "av1", "vp9", "prores", "ffv1"), ("h264", "hevc", "ffv1"), subtitles="subrip"
    ),
    ".webm": Container("webm", ("vp9", "av1"), ("vp9", "av1", "vp9"), "libopus", "webvtt"),
    ".gif": Container("gif", ("gif",), ("gif", "gif", "gif"), None),
}
_UNUSUAL = ("nv", "mono", "rgb8", "bgr8", "rgb4_", "bgr4_")  # pixel formats of shared or partial bytes
IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a user asked of an output; None: what follows from the source and the output's name.

    codec: one of CODECS that the container holds. quality: the codec's own scale (CRF; JPEG 1 to 31, WebP 0 to 100).
    pixel_format: name in libav. folder: a folder of PNG, whatever the name.
    """

    codec: str | None = None
    quality: int | None = None
    pixel_format: str | None = None
    folder: bool = False


NOTHING_ASKED = Asked()


@dataclasses.dataclass(frozen=True)
class Encoding:
    """An encoder with its options and pixel format. alpha: the source's alpha is kept. note: what is lost, or None."""

    codec: str
    encoder: str
    options: dict[str, str]
    pixel_format: str
    alpha: bool
    note: str | None = None


def choose_encoding(suffix: str, asked: Asked, native: str | None, bits: int = 8, alpha: bool = False) -> Encoding:
    """Encoding of an output.

    suffix: of CONTAINERS or IMAGES. native: pixel format of the source; None: RGB frames from memory. bits: of the
    source's samples. alpha: the source has an alpha plane.
    Raises ValueError for a codec that the container does not hold, and for a quality or pixel format that the codec
    does not have.
    """
    name = _choose_codec(suffix, asked.codec, bits, alpha)
    codec = CODECS[name]
    options = dict(codec.options)
    if codec.quality is not None:
        lowest, highest, default = codec.quality
        quality = default if asked.quality is None else asked.quality
        if not lowest <= quality <= highest:
            raise ValueError(f"`quality` must lie in {lowest}..{highest} for {name}, found {quality}")
        options[codec.option] = str(quality)
    elif asked.quality is not None:
        raise ValueError(f"{name} has no quality to choose, found {asked.quality}")
    formats = [f.name for f in av.Codec(codec.encoder, "w").video_formats if not f.name.startswith(_UNUSUAL)]
    if asked.pixel_format is not None:
        if asked.pixel_format not in formats:
            raise ValueError(
                f"`pixel_format` must be one of {', '.join(formats)} for {name}, found {asked.pixel_format!r}"
            )
        chosen, note = asked.pixel_format, None
    else:
        keeps_alpha = alpha and bool(codec.alpha) and not (name == "vp9" and suffix == ".mp4")
        chosen = _choose_format(name, formats, native, bits, keeps_alpha)
        note = _loss(native, chosen, name)
    return Encoding(name, codec.encoder, options, chosen, alpha and has_alpha(chosen), note)


def _choose_codec(suffix: str, asked: str | None, bits: int, alpha: bool) -> str:
    if suffix in IMAGES:
        if asked is not None:
            raise ValueError(f"`codec` must not be given for an image, found {asked!r}")
        return IMAGES[suffix]
    container = CONTAINERS[suffix]
    if asked is not None:
        if asked not in container.codecs:
            raise ValueError(f"`codec` must be one of {', '.join(container.codecs)} for {suffix}, found {asked!r}")
        return asked
    usual, deep, with_alpha = container.defaults
    if alpha and with_alpha is not None:
        return with_alpha
    return deep if bits > 8 else usual


def _choose_format(name: str, formats: list[str], native: str | None, bits: int, alpha: bool) -> str:
    """The source's own pixel format where the codec has it, or the one that loses least."""
    codec = CODECS[name]
    if name == "gif":
        return "pal8"
    if name == "png":
        return "rgba" if alpha else "rgb24"
    if name == "jpeg":
        return "yuvj444p"
    if name == "webp":
        return "bgra"
    if alpha:
        accepted = [f for f in formats if f in codec.alpha]
    else:
        accepted = [f for f in formats if not has_alpha(f) and not f.startswith("yuvj")]
    wanted = planar_format(native or "rgb24")
    if wanted is not None and not alpha:
        wanted = wanted.replace("yuva", "yuv")
    if name not in ("ffv1", "prores") and (wanted is None or wanted.startswith("gray")):
        # no player shows streams of gray or RGB; pictures and GIF get the chroma of usual video
        sampling = "444" if native is not None and native.startswith("gbr") else "420"
        wanted = f"yuv{'a' if alpha else ''}{sampling}p{'10le' if bits > 8 else ''}"
    if wanted in accepted:
        return wanted
    best, _ = find_best_pix_fmt_of_list(accepted, wanted or native or "rgb24", alpha)
    return best.name


def has_alpha(pixel_format: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components) or pixel_format == "pal8"


def planar_format(pixel_format: str) -> str | None:
    """The planar little-endian format of the same samples, such as yuv420p for nv12; None for RGB and palettes."""
    described = av.VideoFormat(pixel_format)
    components = described.components
    if described.is_rgb or described.has_palette or components[0].bits < 8:
        return None
    depth = components[0].bits
    suffix = "" if depth == 8 else f"{depth}le"
    alpha = any(component.is_alpha for component in components)
    if not any(component.is_chroma or component.plane for component in components[1:] if not component.is_alpha):
        return None if alpha else f"gray{suffix}"
    shape = (8 // described.chroma_width(8), 8 // described.chroma_height(8))
    sampling = {(1, 1): "444", (2, 1): "422", (2, 2): "420", (1, 2): "440", (4, 1): "411", (4, 4): "410"}[shape]
    return f"yuv{'a' if alpha else ''}{sampling}p{suffix}"


def _loss(native: str | None, chosen: str, name: str) -> str | None:
    """One line where the samples of a source lose bits, or those of a YUV source chroma resolution."""
    if native is None or name in ("gif", "jpeg", "webp"):
        return None
    before, after = av.VideoFormat(native, 64, 64), av.VideoFormat(chosen, 64, 64)
    fewer_bits = after.components[0].bits < before.components[0].bits
    yuv = planar_format(native) is not None and len(before.components) > 2
    less_chroma = yuv and after.chroma_width(8) * after.chroma_height(8) < before.chroma_width(
        8
    ) * before.chroma_height(8)
    if not (fewer_bits or less_chroma):
        return None
    keep = "; `pixel_format` rgb48be keeps all bits" if name == "png" else ""
    return f"pixels of {native} become {chosen}{keep}"
