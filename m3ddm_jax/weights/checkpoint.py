"""Somebody's checkpoint: where its weights lie, and what its config.json and its shapes say about the network."""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from m3ddm_jax.files.opening import read_json, read_text
from m3ddm_jax.weights import hub
from m3ddm_jax.weights.torch_files import SUFFIXES, read_state_dict

CONFIG = "config.json"
_NAMES = tuple(f"diffusion_pytorch_model.{end}" for end in ("safetensors", "bin", "fp16.safetensors", "fp16.bin"))
# What of a config shows in no shape, and what people call it.
_UNITS = {"attention_head_dim": "heads", "norm_num_groups": "groups"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors by their PyTorch names, read when they are used, and the config beside them.

    source: what to call it in messages. config: {} where there is none.
    """

    source: str
    tensors: Mapping[str, np.ndarray]
    config: Mapping[str, Any]

    def warn_of(self, assumed: Mapping[str, Any]) -> None:
        """Warn of the values that a config alone can say, and are assumed because it does not."""
        values = [
            f"{value} {_UNITS[name]}" if name in _UNITS else f"{name} {value}"
            for name, value in assumed.items()
            if name not in self.config
        ]
        if values:
            assumptions = f"{' and '.join(values)} {'are' if len(values) > 1 else 'is'} assumed"
            warnings.warn(f"no {CONFIG} beside {self.source} says otherwise: {assumptions}", stacklevel=3)


def open_checkpoint(source: str | os.PathLike, subfolder: str) -> Checkpoint:
    """The checkpoint that a user names: a weights file, a folder in diffusers' layout, or hf:OWNER/NAME.

    subfolder: where the weights of a whole pipeline lie. A config.json beside the weights, or else the only .yaml
    there, may hold the values themselves or under a key `config`.
    Raises ValueError for a source that is missing, ambiguous or unreadable.
    """
    path = _fetch(str(source), subfolder) if hub.is_hub(source) else Path(source)
    if path.is_dir():
        weights = _find_weights(path / subfolder) or _find_weights(path)
        if weights is None:
            raise ValueError(f"{source} holds no weights: {', '.join(SUFFIXES)} are looked for in it and {subfolder}/")
    else:
        weights = path
    return Checkpoint(str(weights), read_state_dict(weights), _read_config(weights.with_name(CONFIG)))


def _find_weights(folder: Path) -> Path | None:
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    if found:
        return found[0]
    found = sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)
    if len(found) > 1:
        raise ValueError(f"{folder} holds several weights files, name one: {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _fetch(source: str, subfolder: str) -> Path:
    """The best one of the usual weights files of a repository, and its config."""
    for name in _NAMES:
        patterns = [f"{folder}{file}" for folder in ("", f"{subfolder}/") for file in (CONFIG, name)]
        folder = hub.fetch(source, patterns)
        if _find_weights(folder / subfolder) or _find_weights(folder):
            return folder
    raise ValueError(f"{source} holds no {_NAMES[0]} and no {_NAMES[1]}: download its weights and name the file")


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        found = list(path.parent.glob("*.yaml"))
        if len(found) != 1:
            return {}
        path = found[0]
    try:
        config = read_json(path) if path.suffix == ".json" else yaml.safe_load(read_text(path))
        config = dict(config.get("config", config))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if "kind" in config:
        raise ValueError(f"{path.parent} is a model folder of this library already: it needs no conversion")
    return config


def contradictions(config: Mapping[str, Any], shown: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    """What a config has otherwise than the shapes show it, or than this library computes it (`fixed`)."""
    return [
        f"{CONFIG} says {name} {config[name]}, {whose} {value}"
        for values, whose in ((shown, "the shapes say"), (fixed, "computed here is only"))
        for name, value in values.items()
        if config.get(name, value) != value
    ]


def read_sizes(config: Mapping[str, Any], fields: Mapping[str, str], default: Any) -> dict[str, Any]:
    """Hyper-parameters that a config says, by our names: whole numbers from 1, or lists of them.

    fields: a config's names and ours. default: the module whose values show which of them are lists.
    Raises ValueError for any other value.
    """
    hyper = {}
    for name, ours in fields.items():
        if name in config:
            value, several = config[name], isinstance(getattr(default, ours), tuple)
            numbers = value if several and isinstance(value, list) else [value]
            if not numbers or any(type(number) is not int or number < 1 for number in numbers):
                accepted = "a list of whole numbers" if several else "a whole number"
                raise ValueError(f"{CONFIG} says {name} {value!r}: {accepted} from 1 is accepted")
            hyper[ours] = tuple(numbers) if several else value
    return hyper
