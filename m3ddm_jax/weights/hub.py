"""Models on the Hugging Face hub, named hf:OWNER/NAME wherever a model folder may be named."""

import os
from collections.abc import Sequence
from pathlib import Path

from m3ddm_jax.files.opening import read_json

_PREFIX = "hf:"
_MODEL_FOLDER = ["config.json", "pipeline.json", "weights.safetensors", "autoencoder/*", "image_encoder/*"]


def is_hub(source: str | os.PathLike) -> bool:
    """Whether a user names a repository of the hub and no file."""
    return str(source).startswith(_PREFIX)


def resolve(model: str | os.PathLike) -> Path:
    """The local model folder that a user names: a folder, or hf:OWNER/NAME, which is fetched once and then kept.

    Raises ValueError where it cannot be fetched, or is no folder of this library: then the message says how to convert.
    """
    if not is_hub(model):
        return Path(model)
    folder = fetch(str(model), _MODEL_FOLDER)
    try:
        ours = "kind" in read_json(folder / "config.json")
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(
            f"{model} is not in this library's layout: `python -m m3ddm_jax.convert KIND {model} FOLDER` makes "
            "a folder that is, where KIND says what it holds, such as m3ddm or e2fgvi"
        )
    return folder


def fetch(source: str, patterns: Sequence[str]) -> Path:
    """The local folder of hf:OWNER/NAME, with the files that fit the patterns; what is there already is not fetched.

    Raises ValueError where huggingface_hub is not installed, or the repository cannot be had.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise ValueError(f"{source} is on the hub: pip install huggingface_hub, or name a local folder") from None
    try:
        return Path(snapshot_download(source.removeprefix(_PREFIX), allow_patterns=list(patterns)))
    except errors.LocalEntryNotFoundError:
        reason = "the hub cannot be reached (offline?), and no copy is kept here"
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        reason = "the hub has no such repository, or not for you: `hf auth login` for one that asks for it"
    except Exception as error:  # whatever the HTTP client raises
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ValueError(f"{source} cannot be fetched: {reason}")
