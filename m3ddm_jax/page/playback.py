"""Videos as a browser plays them."""

from pathlib import Path

from m3ddm_jax.video import FrameSink, FrameSource
from m3ddm_jax.video.container import choose_video, open_container
from m3ddm_jax.video.output.codecs import Asked

_PLAYED = {
    "mov": {"h264", "av1", "vp9"},
    "matroska": {"vp8", "vp9", "av1"},  # WebM, of which libav calls Matroska
}
_FORMATS = {"yuv420p", "yuvj420p"}
_CHUNK = 8  # frames


def playable(path: Path, folder: Path) -> Path:
    """The video itself if every browser plays it, else a copy in `folder`: H.264 of 8 bits."""
    with open_container(path) as container:
        stream, _ = choose_video(container, path.name)
        codecs = _PLAYED.get(container.format.name.split(",")[0], ())
        if stream.codec_context.codec.canonical_name in codecs and stream.codec_context.pix_fmt in _FORMATS:
            return path
    source = FrameSource(path, damage="search")
    copy = folder / f"{path.stem}.playable.mp4"
    height, width = source.height // 2 * 2, source.width // 2 * 2
    asked = Asked(codec="h264", pixel_format="yuv420p")
    with FrameSink(copy, source.fps, height, width, source=source, asked=asked) as sink:
        for start in range(0, len(source), _CHUNK):
            sink.write(source[start : start + _CHUNK][:, :height, :width])
    return copy
