"""How large something may be that a small file asks for."""

import dataclasses
import os

LIFT = "M3DDM_JAX_NO_LIMITS"
"""Environment variable that lifts the limits of size, for people who trust their files."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Above these sizes a file is refused before memory or time is spent on it.

    pixels: of a frame. json_bytes: of a JSON file. header_bytes, tensors: of a safetensors file. expanded_bytes: of a
    compressed file, where it also is more than `ratio` times as large as it is compressed.
    """

    pixels: int = 1 << 26
    json_bytes: int = 1 << 24
    header_bytes: int = 1 << 24
    tensors: int = 1 << 16
    expanded_bytes: int = 1 << 26
    ratio: int = 20


_NONE = Limits(*[2**31 - 1] * len(dataclasses.fields(Limits)))


def limits() -> Limits:
    """The limits that hold: the usual ones, or none where the environment variable LIFT is set to 1."""
    return _NONE if os.environ.get(LIFT) == "1" else Limits()


def check_pixels(what: str, height: int, width: int) -> None:
    """Raise ValueError where a picture has more pixels than are accepted."""
    most = limits().pixels
    if height * width > most:
        raise ValueError(f"{what} is {width}x{height}: at most {most:,} pixels are accepted ({LIFT}=1 lifts that)")
