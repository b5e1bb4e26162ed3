"""docs/architecture.md names files and rooms that exist, and all of them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_file_that_the_page_names_exists():
    named = re.findall(r"`((?:m3ddm_jax|configs|data|eval|tests|docs)/[\w./]*)`", PAGE)
    assert len(named) > 30
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_room_has_a_line():
    rooms = {f"m3ddm_jax/{path.name}/" for path in (ROOT / "m3ddm_jax").iterdir() if any(path.glob("*.py"))}
    assert not {room for room in rooms | {"data/", "eval/", "configs/"} if f"| `{room}` |" not in PAGE}


def test_the_names_that_the_how_tos_give_are_there():
    """`NAME` in a how-to line that begins with a file is defined in that file."""
    for file, text in re.findall(r"^- `([\w/]+\.py)`: (.*?)(?=^[-#]|\Z)", PAGE, flags=re.M | re.S):
        source = (ROOT / file).read_text()
        for name in re.findall(r"`(_?[A-Z][A-Z_]+|make_\w+|open_\w+)`", text):
            assert name in source, f"{file} has no {name}"


def test_there_are_ten_how_tos():
    assert re.findall(r"^### (\d+)\.", PAGE, flags=re.M) == [str(number) for number in range(1, 11)]
