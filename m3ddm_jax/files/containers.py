"""Opening videos and images with libav: formats of one file each, no network, no frames beyond the limit of size."""

import io
import os

import av

from m3ddm_jax.files.limits import LIFT, check_pixels, limits
from m3ddm_jax.files.opening import check_regular

_VIDEO = (
    "mov,matroska,avi,asf,flv,live_flv,ogg,mpeg,mpegts,mpegvideo,m4v,h264,hevc,vvc,av1,obu,ivf,vc1,mjpeg,dv,nut,mxf,gxf,"
    "rm,wtv,nsv,amv,swf,yuv4mpegpipe,gif,apng,jpegxl_anim,webp_anim,webp"
)
_IMAGE = "bmp,dpx,exr,jpeg,jpegls,jpegxl,j2k,pam,pbm,pcx,pgm,png,ppm,qoi,sgi,sunrast,tiff,webp"
_SOUND = "mp3,wav,w64,aiff,flac,aac,ac3,eac3,dts,caf,amr,ape,tta,wv"
_SELF_SIZED = ("gif", "apng", "webp_anim", "jpegxl_anim")  # their decoders alone know the size, at the first frame
FORMATS = ",".join([_VIDEO, *(f"{name}_pipe" for name in _IMAGE.split(",")), _SOUND])
"""Names of libav's demuxers that are used. Playlists (concat, hls, dash), sessions (sdp, rtsp) and patterns of names
(image2) are not among them: those read other files or the network."""


def open_container(
    source: bytes | str | os.PathLike, part: tuple[int, int] | None = None
) -> av.container.InputContainer:
    """Open a video or an image, of a file or of bytes; to be closed by the caller.

    part: of a file, its bytes (start, end) alone; end 0 is its own.
    Raises ValueError for what is no regular file, of another format, or has too many pixels; libav's errors, which are
    OSErrors too, where it is damaged.
    """
    name = "the video" if isinstance(source, bytes) else str(source)
    where, protocols = _opened(source), "file"
    if part is not None:
        where, protocols = f"subfile,,start,{part[0]},end,{part[1]},,:file:{os.fspath(source)}", "file,subfile"
    options = {"format_whitelist": FORMATS, "protocol_whitelist": protocols, "max_pixels": str(limits().pixels)}
    try:
        try:
            container = av.open(where, options=options, metadata_errors="replace")
        except av.error.ArgumentError:
            if part is not None or not isinstance(where, str):
                raise
            # By the name of an image libav chooses its reader of patterns of names; the content alone tells the format.
            container = av.open(io.BufferedReader(_Unnamed(source)), options=options, metadata_errors="replace")
    except av.error.ArgumentError:
        raise ValueError(
            f"{name} is no readable image or video: its format is not known, or it is a playlist or session"
        ) from None
    try:
        for stream in container.streams.video:
            _limit(stream, name, container.format.name)
    except ValueError:
        container.close()
        raise
    return container


def _opened(source: bytes | str | os.PathLike) -> io.BytesIO | io.BufferedReader | str:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    check_regular(source)
    path = os.fspath(source)
    # libav takes a percent sign for a pattern of names, and what stands before a colon for a protocol.
    return io.BufferedReader(_Unnamed(path)) if "%" in path else f"file:{path}"


class _Unnamed(io.FileIO):
    @property
    def name(self) -> str:
        return "<none>"

    @name.setter
    def name(self, _: str) -> None:
        pass


def _limit(stream: av.VideoStream, name: str, format_name: str) -> None:
    codec = stream.codec_context
    if codec is None:
        return
    check_pixels(name, codec.height, codec.width)
    if not codec.height and (format_name.endswith("_pipe") or format_name in _SELF_SIZED):
        raise ValueError(f"{name} is damaged, or has more than {limits().pixels:,} pixels ({LIFT}=1 lifts that)")
    codec.options = {**codec.options, "max_pixels": str(limits().pixels)}
