"""Where a file of several usual names lies: in a folder, or in a repository of the hub."""

import os
from collections.abc import Sequence
from pathlib import Path

from m3ddm_jax.weights import hub
from m3ddm_jax.weights.downloads import check_sha256


def find_file(
    source: str | os.PathLike, names: Sequence[str], besides: Sequence[str] = (), sha256: str | None = None
) -> Path:
    """The first of the files that a source has; a source that is a file is the answer itself.

    source: a file, a folder, or hf:OWNER/NAME, of which no more is fetched than that file and those `besides` it.
    names, besides: paths in the folder; besides may have wildcards. sha256: that the file must have; None: any.
    Raises ValueError where there is none of them, and for another SHA-256.
    """
    path = _find(source, names, besides)
    if sha256 is not None and path.is_file():
        check_sha256(path, sha256, path)
    return path


def _find(source: str | os.PathLike, names: Sequence[str], besides: Sequence[str]) -> Path:
    if not hub.is_hub(source) and not Path(source).is_dir():
        return Path(source)
    for name in names:
        folder = hub.fetch(str(source), [name, *besides]) if hub.is_hub(source) else Path(source)
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{source} has none of {', '.join(names)}")
