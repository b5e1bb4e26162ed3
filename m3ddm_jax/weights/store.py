"""A model folder: config.json (kind, hyper-parameters), weights.safetensors, and what its pipeline needs besides."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.files.opening import check_regular, read_json
from m3ddm_jax.files.writing import bring_along, new_folder, recover, resolve
from m3ddm_jax.models import registry
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.memory import check_memory
from m3ddm_jax.weights.tensors import read_safetensors, write_safetensors

_CONFIG = "config.json"
_WEIGHTS = "weights.safetensors"
_SETTINGS = "pipeline.json"
_AUTOENCODER = "autoencoder"
_IMAGE_ENCODER = "image_encoder"
# Problems that are all named, whatever they are; of another network's weights no more are.
_FEW = 20


def save_model(
    folder: str | os.PathLike,
    module: nn.Module,
    variables: Variables,
    *,
    settings: dict[str, Any] | None = None,
    autoencoder: tuple[nn.Module, Variables] | None = None,
    image_encoder: tuple[nn.Module, Variables] | None = None,
) -> None:
    """Write a model folder that `load_model` reads back; a folder that is there is replaced at the end, as a whole.

    Weights are stored in the dtype that they have: float16 halves the folder. They are copied one at a time, so that
    views of a file never fill memory. What else lies in an old folder stays, its sub-folders too where none are given.

    settings: plain values its pipeline needs (diffusion, sampling), written to pipeline.json.
    autoencoder, image_encoder: the codec of a latent model, and what a globally guided one sees whole videos through,
      written to sub-folders of these names in the same layout.
    """
    folder = resolve(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(folder) as new:
        _write(new, module, variables)
        if settings is not None:
            (new / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        for name, part in ((_AUTOENCODER, autoencoder), (_IMAGE_ENCODER, image_encoder)):
            if part is not None:
                (new / name).mkdir()
                _write(new / name, *part)
        bring_along(folder, new, besides=(_SETTINGS,))


def _write(folder: Path, module: nn.Module, variables: Variables) -> None:
    kind, hyper = registry.describe(module)
    (folder / _CONFIG).write_text(json.dumps({"kind": kind, **hyper}, indent=2) + "\n")
    write_safetensors(folder / _WEIGHTS, flatten_dict(variables, sep="."))


def check_replaceable(folder: str | os.PathLike, kind: str) -> None:
    """Raise ValueError where saving a model of a kind to a folder would take the place of something else.

    A folder that is not there, that is empty or holds nothing but an autoencoder or image encoder, and a model folder
    of that kind are fine.
    """
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder} is a file: name a folder")
        return
    names = {path.name for path in folder.iterdir()}
    if names <= {_AUTOENCODER, _IMAGE_ENCODER}:
        return
    found = _read_json(folder / _CONFIG).get("kind") if _CONFIG in names else None
    if found != kind:
        what = f"a model folder of kind {found!r}" if found else "a folder of other files"
        raise ValueError(f"{folder} is {what}: name a new folder, or one that holds a model of kind {kind!r}")


def load_model(folder: str | os.PathLike, kind: str | Collection[str] | None = None) -> tuple[nn.Module, Variables]:
    """(module, variables as numpy, float32 whatever they are stored in) of a model folder.

    kind: the kind, or kinds, that are accepted; None accepts all.
    Float32 weights are read-only views of the file: they are read when they are used, and take memory once.
    Raises ValueError for a model of another kind, where the folder, its config or its weights are missing or broken,
    where weights are missing, surplus or of another shape than the config says (all of them are listed), where some are
    not finite (the first are named), and where memory is too little.
    """
    folder = Path(folder)
    recover(folder)
    config = _read_json(folder / _CONFIG)
    if "kind" not in config:
        raise ValueError(f"{folder / _CONFIG} names no model kind")
    found, accepted = config.pop("kind"), (kind,) if isinstance(kind, str) else kind
    if accepted is not None and found not in accepted:
        raise ValueError(f"{folder} holds a model of kind {found}: one of kind {' or '.join(accepted)} is needed")
    try:
        module = registry.build(found, **registry.without_removed(found, config))
        expected = flatten_dict(registry.abstract_variables(module), sep=".")
    except ValueError as error:
        raise ValueError(f"{folder / _CONFIG} cannot be used: {error}") from error
    if not (folder / _WEIGHTS).exists():
        raise ValueError(f"{folder} has no {_WEIGHTS}")
    check_regular(folder / _WEIGHTS)
    check_memory(str(folder), 4 * sum(leaf.size for leaf in expected.values()))
    weights = read_safetensors(folder / _WEIGHTS)
    check_names(str(folder / _WEIGHTS), _shapes(weights), _shapes(expected))
    weights = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    check_finite(str(folder / _WEIGHTS), weights)
    return module, unflatten_dict(weights, sep=".")


def held_kinds(folder: str | os.PathLike, kinds: Iterable[str]) -> dict[str, Path]:
    """The model folders that a folder holds, by kind: itself, or those of its sub-folders that are named by `kinds`."""
    folder = Path(folder)
    if (folder / _CONFIG).exists():
        return {str(_read_json(folder / _CONFIG).get("kind")): folder}
    return {kind: folder / kind for kind in kinds if (folder / kind).is_dir()}


def check_finite(source: str, tensors: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first few, where tensors of a source hold values that are not finite."""
    # Extremes tell as much as all values do, and take no memory.
    wrong = [name for name, value in tensors.items() if value.size and not _is_finite(np.asarray(value))]
    if wrong:
        more = f" and {len(wrong) - _FEW // 4} more" if len(wrong) > _FEW // 4 else ""
        raise ValueError(f"{source} holds values that are not finite: in {', '.join(wrong[: _FEW // 4])}{more}")


def _is_finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def check_names(
    source: str,
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    remarks: Iterable[str] = (),
) -> None:
    """Raise one ValueError that lists every missing, surplus and misshapen weight of a source; shapes by name.

    Where most names are missing, the source is another network's: then the first few are listed. Remarks are problems
    that were found before.
    """
    common = sorted(expected.keys() & found.keys())
    missing = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    surplus = [f"surplus {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    misshapen = [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        for name in common
        if tuple(found[name]) != tuple(expected[name])
    ]
    problems = [*remarks, *missing, *surplus, *misshapen]
    if not problems:
        return
    fitting = f"{len(common) - len(misshapen)} of {len(expected)} weights fit"
    if len(common) < len(missing) and len(problems) > _FEW:
        few = [*missing[: _FEW // 4], *surplus[: _FEW // 4]]
        raise ValueError(
            f"{source} is another network's: {fitting}; {'; '.join(few)}; and {len(problems) - len(few)} more"
        )
    raise ValueError(f"{source} does not fit the model: {fitting}; {'; '.join(problems)}")


def load_autoencoder(folder: str | os.PathLike) -> tuple[nn.Module, Variables]:
    """(module, variables) of the codec that a latent model's folder carries; errors as `load_model`."""
    return _load_part(folder, _AUTOENCODER, "sd-vae", "Stable Diffusion's")


def load_image_encoder(folder: str | os.PathLike) -> tuple[nn.Module, Variables]:
    """(module, variables) of what a globally guided model sees whole videos through; errors as `load_model`."""
    return _load_part(folder, _IMAGE_ENCODER, "openclip", "OpenCLIP's")


def _load_part(folder: str | os.PathLike, name: str, kind: str, whose: str) -> tuple[nn.Module, Variables]:
    part = Path(folder) / name
    if Path(folder).is_dir() and not part.is_dir():
        raise ValueError(
            f"{folder} has no {name}/: `python -m m3ddm_jax.convert {kind} SOURCE {part}` makes it of {whose}"
        )
    return load_model(part)


def load_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """What a model folder's pipeline.json holds. Raises ValueError where it is missing or broken."""
    return _read_json(Path(folder) / _SETTINGS)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a model folder: no such folder")
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
