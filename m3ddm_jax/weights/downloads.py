"""Files from https addresses, pinned by their SHA-256."""

import hashlib
import os
import urllib.parse
import urllib.request
from pathlib import Path

_PREFIX = "https://"
_CHUNK = 1 << 20
_LARGEST = 1 << 34  # bytes
_SECONDS = 60  # without an answer


def is_url(source: str | os.PathLike) -> bool:
    """Whether a user names an address and no file."""
    return str(source).startswith(_PREFIX)


def download(url: str, folder: Path, sha256: str | None) -> Path:
    """The file of an https address, written to a folder under its own name.

    Raises ValueError where no SHA-256 pins it, it cannot be fetched, or it has another one.
    """
    if sha256 is None:
        raise ValueError(f"{url} is downloaded only with the SHA-256 that it must have, `sha256`")
    path = folder / (Path(urllib.parse.urlsplit(url).path).name or "download")
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer, path.open("wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                if file.tell() > _LARGEST:
                    raise ValueError(f"{url} has more than {_LARGEST:,} bytes")
    except OSError as error:  # of the network, too
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be fetched: {reason}") from None
    check_sha256(path, sha256, url)
    return path


def check_sha256(path: str | os.PathLike, sha256: str, source: str | os.PathLike) -> None:
    """Raise ValueError where a file has another SHA-256. source: what the message calls the file."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ValueError(f"{source} has the SHA-256 {found}, expected {sha256}")
