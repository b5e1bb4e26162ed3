"""A model folder: config.json (kind, hyper-parameters), weights.safetensors, and what its pipeline needs besides."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from m3ddm_jax.models import registry
from m3ddm_jax.types import Variables

_CONFIG = "config.json"
_WEIGHTS = "weights.safetensors"
_SETTINGS = "pipeline.json"
_AUTOENCODER = "autoencoder"


def save_model(
    folder: str | os.PathLike,
    module: nn.Module,
    variables: Variables,
    *,
    settings: dict[str, Any] | None = None,
    autoencoder: tuple[nn.Module, Variables] | None = None,
) -> None:
    """Write a model folder that `load_model` reads back; an old folder of that name is replaced at the end.

    Weights are stored in the dtype that they have: float16 halves the folder.

    settings: plain values its pipeline needs (diffusion, sampling), written to pipeline.json.
    autoencoder: the codec of a latent model, written to the sub-folder `autoencoder` in the same layout.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(temporary, module, variables)
        if settings is not None:
            (temporary / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        if autoencoder is not None:
            (temporary / _AUTOENCODER).mkdir()
            _write(temporary / _AUTOENCODER, *autoencoder)
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, module: nn.Module, variables: Variables) -> None:
    kind, hyper = registry.describe(module)
    (folder / _CONFIG).write_text(json.dumps({"kind": kind, **hyper}, indent=2) + "\n")
    flat = flatten_dict(jax.device_get(variables), sep=".")
    # safetensors writes raw memory: a transposed view would come back scrambled.
    save_file({name: np.ascontiguousarray(value) for name, value in flat.items()}, folder / _WEIGHTS)
    (folder / _WEIGHTS).chmod(0o644)


def load_model(folder: str | os.PathLike) -> tuple[nn.Module, Variables]:
    """(module, variables as numpy, float32 whatever they are stored in) of a model folder.

    Raises ValueError where the folder, its config or its weights are missing or broken, and where weights are missing,
    surplus or of another shape than the config says: all of them are listed.
    """
    folder = Path(folder)
    config = _read_json(folder / _CONFIG)
    if "kind" not in config:
        raise ValueError(f"{folder / _CONFIG} names no model kind")
    module = registry.build(config.pop("kind"), **config)
    try:
        weights = load_file(folder / _WEIGHTS)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {_WEIGHTS}") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / _WEIGHTS} cannot be read: {error}") from None
    expected = flatten_dict(registry.abstract_variables(module), sep=".")
    check_names(
        str(folder / _WEIGHTS), {n: v.shape for n, v in weights.items()}, {n: v.shape for n, v in expected.items()}
    )
    return module, unflatten_dict(
        {name: value.astype(np.float32, copy=False) for name, value in weights.items()}, sep="."
    )


def check_names(source: str, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
    """Raise one ValueError that lists every missing, surplus and misshapen weight of a source; shapes by name."""
    problems = [f"missing {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"surplus {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} is {list(found[name])}, expected {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if tuple(found[name]) != tuple(expected[name])
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}")


def load_autoencoder(folder: str | os.PathLike) -> tuple[nn.Module, Variables]:
    """(module, variables) of the codec that a latent model's folder carries; errors as `load_model`."""
    return load_model(Path(folder) / _AUTOENCODER)


def load_settings(folder: str | os.PathLike) -> dict[str, Any]:
    """What a model folder's pipeline.json holds. Raises ValueError where it is missing or broken."""
    return _read_json(Path(folder) / _SETTINGS)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not a model folder: no such folder")
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a model folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
