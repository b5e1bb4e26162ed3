"""MI-GAN's published checkpoints -> our tree: state dicts, TorchScript archives and ONNX files."""

import os
import re
from collections.abc import Mapping

import numpy as np
from flax.traverse_util import unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.migan import MIGAN
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.inert import read_inert
from m3ddm_jax.weights.names import size, take, targets, torch_name
from m3ddm_jax.weights.onnx import Node, read_onnx
from m3ddm_jax.weights.sources import find_file
from m3ddm_jax.weights.tensors import read_safetensors
from m3ddm_jax.weights.torchscript import is_torchscript, read_torchscript

SUFFIXES = (".onnx", ".pt", ".safetensors")
_NAMES = (
    "migan_pipeline_v2.onnx",
    "migan.onnx",
    "migan_512_places2.pt",
    "migan_256_places2.pt",
    "migan_256_ffhq.pt",
    "migan_traced.pt",
)
_NETWORK = ("encoder.", "synthesis.")
_LEVEL = re.compile(r"encoder\.b(\d{1,5})\.")
_TAPS = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
_TOLERANCE = 1e-5


def read_migan(source: str | os.PathLike, sha256: str | None = None) -> Mapping[str, np.ndarray]:
    """Tensors by their PyTorch names of a published checkpoint; nothing in it is run.

    source: a state dict or TorchScript archive (.pt), .onnx of the network or the whole pipeline, .safetensors, a
    folder with one of the published files, or hf:OWNER/NAME. sha256: of the file that is read; None: any.
    Raises ValueError for a source that is missing, damaged, of another kind or with another SHA-256.
    """
    path = find_file(source, _NAMES, sha256=sha256)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no file of MI-GAN's: {', '.join(SUFFIXES)} are accepted")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".onnx":
        return _from_onnx(*read_onnx(path))
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_torchscript(path) if is_torchscript(path) else read_inert(path)


def _from_onnx(tensors: Mapping[str, np.ndarray], nodes: list[Node]) -> dict[str, np.ndarray]:
    """The network's tensors of a graph. Exporters merge equal ones, and multiply noise by its strength."""
    tensors = dict(tensors)
    for node in nodes:
        if node.kind == "Identity" and node.inputs[0] in tensors:
            tensors[node.outputs[0]] = tensors[node.inputs[0]]
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    found = {name: tensor for name, tensor in found.items() if name.startswith(_NETWORK)}
    for level in {int(level[1]) for level in map(_LEVEL.match, found) if level}:
        if f"synthesis.b{level}.conv1.noise_const" in found:
            continue
        added = [name for node in nodes if node.kind == "Add" for name in node.inputs if name in tensors]
        noises = [tensors[name] for name in added if tensors[name].shape == (level, level)]
        for unit, noise in zip(("conv1", "conv2"), noises, strict=False):
            found[f"synthesis.b{level}.{unit}.noise_const"] = noise
            found[f"synthesis.b{level}.{unit}.noise_strength"] = np.ones((), noise.dtype)
    return found


def migan_from_state_dict(tensors: Mapping[str, np.ndarray]) -> tuple[MIGAN, Variables]:
    """(module, variables as numpy) of a state dict of MI-GAN's inference form; its sizes are those of the shapes.

    Raises ValueError for other filters than the published ones, for the form that is trained, and one that lists every
    missing, surplus and misshapen tensor.
    """
    levels = sorted({int(found[1]) for found in map(_LEVEL.match, tensors) if found})
    if not levels:
        raise ValueError(f"no MI-GAN: of {len(tensors)} tensors none has a name such as encoder.b512.fromrgb.weight")
    if f"encoder.b{levels[-1]}.conv1.conv1.w0" in tensors:
        raise ValueError("this is MI-GAN's training form (weights w0, w1, ...): export it with its authors' script")
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".filter.weight") or name.endswith(".filter_const"):
            _check_filter(name, tensor)
        elif name.endswith(".noise_const"):
            strength = tensors.get(f"{name.removesuffix('const')}strength", np.ones((), tensor.dtype))
            # `take` reads [out, in].
            found[f"{name.removesuffix('_const')}"] = np.ascontiguousarray((tensor * strength.reshape(())).T)
        elif not name.endswith(".noise_strength"):
            found[name] = tensor
    module = _module(found, levels[-1])
    return module, unflatten_dict(take("the state dict of MI-GAN", found, targets(module, _torch_name)), sep=".")


def _module(tensors: Mapping[str, np.ndarray], resolution: int) -> MIGAN:
    """The network that the shapes show."""
    width, most = (size(tensors, f"encoder.b{side}.conv1.conv1.weight") for side in (resolution, 4))
    shown = {"width": width, "most_channels": most}
    return registry.build("migan", resolution=resolution, **{name: value for name, value in shown.items() if value})


def _torch_name(path: str) -> str:
    if path.endswith(".noise"):
        return path.removeprefix("params.")
    return torch_name(path)


def _check_filter(name: str, tensor: np.ndarray) -> None:
    """Raise ValueError for a filter that is not the one that the network computes with."""
    if name.endswith(".filter_const"):
        expected = np.zeros(tensor.shape)
        expected[..., ::2, ::2] = 1
    else:
        expected = _TAPS * (4 if ".upsample." in name else 1)
    if tensor.shape[-2:] != expected.shape[-2:] or np.abs(tensor - expected).max() > _TOLERANCE:
        raise ValueError(f"{name} is another filter than the published one, which alone is accepted")
