"""m3ddm COMMAND ...: every command of the project. `python -m m3ddm_jax COMMAND ...` is the same."""

import difflib
import pathlib
import runpy
import sys
from typing import NamedTuple, NoReturn

import m3ddm_jax


class Command(NamedTuple):
    """The module that `python -m` runs too, what it does, and whether it needs the folders of a checkout."""

    module: str
    about: str
    in_checkout: bool = False


COMMANDS = {
    "outpaint": Command("m3ddm_jax.outpaint", "outpaint a video"),
    "batch": Command("m3ddm_jax.batch", "outpaint many videos, in processes or on a Ray cluster"),
    "demo": Command("m3ddm_jax.demo", "open a page in the browser that outpaints a video"),
    "convert": Command("m3ddm_jax.convert", "convert a published checkpoint"),
    "prepare": Command("data.prepare", "prepare training data", in_checkout=True),
    "train": Command("m3ddm_jax.train", "train a model", in_checkout=True),
    "evaluate": Command("eval.run", "score outpainted videos", in_checkout=True),
    "plan": Command("m3ddm_jax.plan", "plan a run on a TPU pod", in_checkout=True),
    "bench": Command("m3ddm_jax.bench", "measure speed and memory", in_checkout=True),
}
USAGE = "\n".join(
    ["m3ddm COMMAND ..., where COMMAND is one of", ""]
    + [f"  {name:9} {command.about}" for name, command in COMMANDS.items()]
    + ["", "m3ddm COMMAND --help describes a command, m3ddm --version prints the version."]
)


def main() -> None:
    """Run the command that the first argument names. Does not return where that ends the process."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(USAGE)
        return
    if name == "--version":
        print(m3ddm_jax.__version__)
        return
    command = COMMANDS.get(name)
    if command is None:
        nearest = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f", did you mean {nearest[0]}?" if nearest else ""
        _fail(f"COMMAND must be one of {', '.join(COMMANDS)}, found {name!r}{hint}")
    if command.in_checkout:
        root = checkout()
        if root is None:
            _fail(f"{name} needs a checkout of the project: run `pip install -e .` in one")
        sys.path.insert(0, str(root))
    sys.argv[1:] = arguments
    runpy.run_module(command.module, run_name="__main__", alter_sys=True)


def checkout() -> pathlib.Path | None:
    """The folder that holds this package, if configs/, data/ and eval/ lie in it too; None in an installed wheel.

    No installation puts these three on the path, where they could hide packages of the same names. Commands that need
    them add this folder to the path of their own process.
    """
    root = pathlib.Path(__file__).resolve().parents[1]
    is_whole = all((root / file).is_file() for file in ("configs/common.py", "data/masks.py", "eval/run.py"))
    return root if is_whole else None


def _fail(message: str) -> NoReturn:
    print(f"m3ddm: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
