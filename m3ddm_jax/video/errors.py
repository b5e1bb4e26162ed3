"""Errors of libav and of the file system as one line that names the file."""

import contextlib
from collections.abc import Iterator

import av


class Damaged(ValueError):
    """A video file breaks off, or frames in its middle cannot be decoded."""


@contextlib.contextmanager
def reraise_as(message: str) -> Iterator[None]:
    """Raises ValueError "message: reason" in place of an error of libav or of the file system."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(f"{message}: {error.strerror or error}") from error
