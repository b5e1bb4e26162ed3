"""How a command of ours runs: flags are read, and whatever is wrong is one line on stderr and exit status 2, or 128 +
signal where somebody ended it."""

import contextlib
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Callable, Iterator

from absl import app, flags
from absl import logging as absl_logging

from m3ddm_jax.files.process import cleaning_up, without_reader

_FAILURES = (ValueError, OSError, FloatingPointError)
_ARGUMENT = re.compile(r"`(\w+)`")


def cache_folder(name: str) -> pathlib.Path:
    """Where files of a kind are cached between commands: $XDG_CACHE_HOME/m3ddm_jax/NAME, or ~/.cache/m3ddm_jax/NAME."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "m3ddm_jax" / name


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache: $JAX_COMPILATION_CACHE_DIR, or a folder next to other caches.

    Must come before jax is imported.
    """
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("programs")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def run(name: str, main: Callable[..., None], *arguments: str) -> None:
    """Runs a command: main(*values), a value for each argument named, once flags are parsed. Does not return.

    Wrong flags, what a config file raises, and a number of arguments that does not fit end it as `failing` says.
    """
    app.run(lambda argv: call(name, main, arguments, argv[1:]), flags_parser=lambda argv: _parse_flags(name, argv))


def call(name: str, main: Callable[..., None], arguments: tuple[str, ...], values: list[str]) -> None:
    """main(*values), as `run` does it with flags that are parsed already."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # else jax names every accelerator that is not there
    with failing(name, *_FAILURES):
        if len(values) != len(arguments):
            expected, found = (" ".join(words) or "no argument" for words in (arguments, values))
            raise ValueError(f"{expected} expected, found {found}")
        try:
            with cleaning_up(name), without_reader(), _notes(name):
                main(*values)
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)


@contextlib.contextmanager
def failing(name: str, *kinds: type[Exception]) -> Iterator[None]:
    """Ends the process with `NAME: what is wrong` in one line on stderr and status 2 where one of `kinds` is raised."""
    try:
        yield
    except kinds as error:
        print(f"{name}: {' '.join(_with_flags(str(error)).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)


def _with_flags(message: str) -> str:
    """A message of the library with --aspect for the argument `aspect`, and likewise for all that have a flag."""

    def flag(argument: re.Match) -> str:
        name = {"settings": "set"}.get(argument[1], argument[1])
        return f"--{name.replace('_', '-')}" if name in flags.FLAGS else argument[0]

    return _ARGUMENT.sub(flag, message)


@contextlib.contextmanager
def _notes(name: str) -> Iterator[None]:
    """Print what the library logs as `NAME: note` in a line on stderr."""
    logger, handler = logging.getLogger("m3ddm_jax"), logging.StreamHandler()
    handler.format = lambda record: f"{name}: {_with_flags(record.getMessage())}"
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _parse_flags(name: str, argv: list[str]) -> list[str]:
    with failing(name, Exception):  # a config file may raise anything
        # The parser's own message would not name the file where fields are overridden too.
        for path in (argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")):
            file, *_ = path.split(":")  # what follows is the config's own
            if not pathlib.Path(file).is_file():
                raise ValueError(f"there is no config file {file}")
        return flags.FLAGS([_underscored(argument) for argument in argv])


def _underscored(argument: str) -> str:
    """--pixel-format=NAME as --pixel_format=NAME: both are accepted."""
    name, equals, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else argument
