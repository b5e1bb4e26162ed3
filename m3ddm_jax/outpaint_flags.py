"""Flags of the commands that outpaint, outpaint and batch, as arguments of the Python API."""

from typing import Any

from absl import flags

from m3ddm_jax import cli, method_flags
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.video.output.codecs import CODECS, IMAGES

TARGET = ("aspect", "size", "pad", "anchor", "mask")
"""Flags that say what is made of a video."""


def define() -> None:
    """Define the flags."""
    flags.disclaim_key_flags()  # they are the command's, whose --help shows them
    flags.DEFINE_string("aspect", None, "Target aspect, WIDTH:HEIGHT or a number; outpaint accepts several: 16:9,9:16.")
    flags.DEFINE_string("size", None, "Target size WIDTHxHEIGHT in pixels, both even.")
    flags.DEFINE_string("pad", None, "Pixels to add: left,top,right,bottom.")
    flags.DEFINE_string(
        "anchor", None, "Where the source lies: x,y from 0 (left, top) to 1 (right, bottom); else 0.5,0.5."
    )
    flags.DEFINE_string(
        "mask", None, "Image, folder or video: what is white there is generated too, by in2out and isvi."
    )
    flags.DEFINE_float("fps", None, "Frames a second of a folder (else 24); a video is sampled anew at this rate.")
    flags.DEFINE_boolean("keep_interlaced", False, "Leave the fields of interlaced video as they are.")
    flags.DEFINE_boolean("strict", False, "Refuse a damaged video instead of outpainting the frames that it still has.")
    flags.DEFINE_boolean("sdr", False, "Convert HDR video, PQ or HLG, to 8-bit BT.709.")
    videos = [name for name in CODECS if name not in ("gif", *IMAGES.values())]
    flags.DEFINE_enum(
        "codec", None, videos, "Video codec; by default the one that docs/outputs.md lists for OUT's suffix."
    )
    flags.DEFINE_integer(
        "quality", None, "Constant quality: CRF, for JPEG 1 to 31 (lower is better), for WebP 0 to 100."
    )
    flags.DEFINE_string("pixel_format", None, "Pixel format of the output, such as yuv420p; by default the source's.")
    flags.DEFINE_string(
        "method", None, f"{', '.join(OUTPAINTERS)}; by default what --model is for, else isvi with --mask, else lite."
    )
    method_flags.define()
    flags.DEFINE_integer("seed", 0, "The same seed gives the same video.", lower_bound=0)


def reading(values: Any) -> dict[str, bool]:
    """How files are read: keywords of `api.inputs.read_file`."""
    return {"deinterlace": not values.keep_interlaced, "strict": values.strict, "sdr": values.sdr}


def encoding(values: Any) -> dict[str, Any]:
    """How files are written: arguments of `api.targets.plan_target`."""
    return {name: values[name].value for name in ("codec", "quality", "pixel_format")}


def options(values: Any) -> dict[str, Any]:
    """Options of the method; adapted networks are cached next to other caches."""
    found = method_flags.read(values)
    if values.adapt:
        found.setdefault("cache", str(cli.cache_folder("adapted")))
    return found
