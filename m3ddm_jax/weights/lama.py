"""LaMa's published checkpoints -> our tree: the generator alone of whatever else they hold."""

import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flax.traverse_util import unflatten_dict

from m3ddm_jax.files.opening import check_expansion, read_text
from m3ddm_jax.models import registry
from m3ddm_jax.models.lama import LaMa
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.inert import read_inert
from m3ddm_jax.weights.names import size, take, targets
from m3ddm_jax.weights.sources import find_file
from m3ddm_jax.weights.tensors import read_safetensors
from m3ddm_jax.weights.torchscript import is_torchscript, read_torchscript

SUFFIXES = (".zip", ".ckpt", ".pt", ".safetensors")
_CHECKPOINT = "models/best.ckpt"
_CONFIG = "config.yaml"
_NAMES = (_CHECKPOINT, f"big-lama/{_CHECKPOINT}", "best.ckpt", "big-lama.zip", "big-lama.pt", "big-lama.safetensors")
_FIRST = "model.1.ffc.convl2l.weight"
_BLOCK = re.compile(r"model\.(\d{1,3})\.conv1\.ffc\.")
_GENERATOR = re.compile(r"(.*\.)?model\.\d+\.")
_REJECTED = {
    ".ffc.gate.": "gates",
    ".fu.se.": "squeeze and excitation",
    ".lfu.": "local Fourier units",
    ".impl.": "a learned spatial transform",
    ".angle": "a learned spatial transform",
}
_ACCEPTED = "big-lama and lama-fourier are accepted"


def read_lama(
    source: str | os.PathLike, sha256: str | None = None
) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    """(tensors by name, `generator` of the config.yaml or {}) of a published checkpoint; nothing in it is run.

    source: the .zip that is published, a folder that it was unpacked to, its best.ckpt, a TorchScript archive (.pt),
    .safetensors, or hf:OWNER/NAME. sha256: of the file that is read; None: any.
    Raises ValueError for a source that is missing, damaged, of another kind or with another SHA-256.
    """
    path = find_file(source, _NAMES, (_CONFIG, f"big-lama/{_CONFIG}"), sha256)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no file of LaMa's: {', '.join(SUFFIXES)} are accepted")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".zip":
        return _read_zip(path)
    configs = [folder / _CONFIG for folder in (path.parent, path.parent.parent) if (folder / _CONFIG).is_file()]
    config = _generator_config(str(configs[0]), read_text(configs[0])) if configs else {}
    if path.suffix == ".safetensors":
        return read_safetensors(path), config
    return read_torchscript(path) if is_torchscript(path) else read_inert(path, _is_generator), config


def _is_generator(name: str) -> bool:
    return _GENERATOR.match(name) is not None


def _read_zip(path: Path) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            check_expansion(archive)
            names = archive.namelist()
            found = [name for name in names if name.endswith(".ckpt")]
            if len(found) != 1:
                raise ValueError(f"it holds {len(found)} checkpoints (.ckpt), one is accepted")
            texts = [name for name in names if name.endswith(_CONFIG)]
            text = archive.read(texts[0]).decode() if texts else ""
            unpacked = Path(folder) / "best.ckpt"
            with archive.open(found[0]) as packed, unpacked.open("wb") as file:
                while chunk := packed.read(1 << 20):
                    file.write(chunk)
            return read_inert(unpacked, _is_generator), _generator_config(f"{path}, {_CONFIG}", text)
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _generator_config(source: str, text: str) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text) or {}
        return dict(config.get("generator") or {})
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        raise ValueError(f"{source} is no configuration of LaMa's") from None


def lama_from_state_dict(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> tuple[LaMa, Variables]:
    """(module, variables as numpy) of tensors by name, of which those of the generator are used, whatever their prefix.

    config: `generator` of the config.yaml, for what no shape shows.
    Raises ValueError for a generator of another form, and one that lists every missing, surplus and misshapen tensor.
    """
    activation = (config or {}).get("add_out_act", "sigmoid")
    if activation != "sigmoid":
        raise ValueError(f"{_CONFIG} says add_out_act {activation!r}: sigmoid is accepted")
    tensors = _generator(tensors)
    module = _module(tensors)
    return module, unflatten_dict(take("the state dict of LaMa", tensors, targets(module)), sep=".")


def _generator(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The generator's tensors, without what stands before their names."""
    prefixes = [name.removesuffix(_FIRST) for name in tensors if f".{name}".endswith(f".{_FIRST}")]
    if len(prefixes) != 1:
        what = f"{len(prefixes)} generators of LaMa" if prefixes else "no generator of LaMa with Fourier convolutions"
        raise ValueError(f"{what} (one {_FIRST} is looked for): {_ACCEPTED}")
    prefix = prefixes[0]
    found = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(f"{prefix}model.")}
    for part, what in _REJECTED.items():
        if any(part in name for name in found):
            raise ValueError(f"the generator of LaMa has {what} ({part.strip('.')}): {_ACCEPTED}")
    return found


def _module(tensors: Mapping[str, np.ndarray]) -> LaMa:
    """The network that the shapes show."""
    blocks = sorted({int(found[1]) for found in map(_BLOCK.match, tensors) if found})
    if not blocks or blocks != list(range(blocks[0], blocks[0] + len(blocks))):
        raise ValueError(f"the generator of LaMa has residual blocks at {blocks}: one row of them is accepted")
    downsamplings, width = blocks[0] - 2, size(tensors, _FIRST) or 0
    near, far = (size(tensors, f"model.{blocks[0] - 1}.ffc.{name}.weight") for name in ("convl2l", "convl2g"))
    if near is None or far is None:
        raise ValueError(f"the generator of LaMa has no global features before its blocks: {_ACCEPTED}")
    shown = {"width": width, "downsamplings": downsamplings, "blocks": len(blocks), "global_channels": far}
    if near + far < width * 2**downsamplings:
        shown["most_channels"] = near + far
    return registry.build("lama", **shown)
