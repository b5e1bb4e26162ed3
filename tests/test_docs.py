"""Commands of the documentation: each has flags that exist, and is run by a test or says what it needs."""

import re
import runpy
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from absl import app, flags
from absl.testing import flagsaver

from m3ddm_jax.__main__ import COMMANDS
from m3ddm_jax.pipelines.base import OUTPAINTERS
from m3ddm_jax.scenes.scene import sample_frames
from m3ddm_jax.video import FrameSink
from m3ddm_jax.video.output.codecs import NOTHING_ASKED, Asked

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


class Command(NamedTuple):
    """A command of a `sh` block. needs: what the block says that it needs, and is not here."""

    page: str
    line: str
    needs: str | None

    @property
    def words(self) -> list[str]:
        """Module and arguments of one of our commands; empty for others."""
        text = re.sub(r"\$\w+", "1", self.line).removesuffix("&").removeprefix(".venv/bin/")
        words = shlex.split(text, comments=True)
        if words[:1] == ["m3ddm"]:
            return [COMMANDS[words[1]].module, *words[2:]]
        ours = words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("m3ddm_jax", "data", "eval")
        return words[2:] if ours else []


def read_commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.M | re.S):
            needs = re.match(r"# needs: (.+)\n", block)
            lines = re.split(r"\n| && ", block.replace("\\\n", " "))
            name = page.relative_to(ROOT).as_posix()
            found += [Command(name, line.strip(), needs and needs[1]) for line in lines if not line.startswith("#")]
    return [command for command in found if command.line]


COMMANDS_FOUND = read_commands()
OURS = {" ".join(command.words): command for command in COMMANDS_FOUND if command.words}
# Those left out take long; tests/pipelines/test_m3ddm.py and tests/outpaint run them on smaller canvases.
RUN_HERE = [
    text
    for text, command in OURS.items()
    if command.words[0] == "m3ddm_jax.outpaint"
    and not command.needs
    and not re.search("--(method=m3ddm|model=|size=|pad=)|1:1", text)
]
SLOW = ("9:16", "--pad=", "--mask=")  # other canvases, for which programs are compiled

# Commands that take long or need data: the tests that run them on less.
RUN_BY = {
    "data.prepare": "tests/data/test_prepare.py",
    "data.synthetic": "tests/data/synthetic/test_command.py",
    "eval.run": "tests/eval/test_run.py",
    "m3ddm_jax.ablate": "tests/test_ablate.py",
    "m3ddm_jax.batch": "tests/batching/test_command.py",
    "m3ddm_jax.bench": "tests/test_bench.py",
    "m3ddm_jax.convert": "tests/test_convert.py",
    "m3ddm_jax.demo": "tests/page/test_server.py",
    "m3ddm_jax.outpaint": "tests/test_docs.py",
    "m3ddm_jax.plan": "tests/test_plan.py",
    "m3ddm_jax.precompute": "tests/test_precompute.py",
    "m3ddm_jax.train": "tests/test_train.py",
}


@pytest.mark.parametrize("text", OURS)
def test_flags_and_configs_exist(text, monkeypatch):
    """The command reads its flags, and ends before it does anything."""
    module, *arguments = OURS[text].words

    def run(main, flags_parser=app.parse_flags_with_usage):
        flags_parser(sys.argv)
        sys.exit(0)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(app, "run", run)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with flagsaver.flagsaver(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__")
    flags.FLAGS.unparse_flags()
    assert stop.value.code == 0


@pytest.mark.parametrize("module", sorted({command.words[0] for command in OURS.values()}))
def test_each_command_is_run_by_a_test(module):
    assert module in (ROOT / RUN_BY[module]).read_text()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp("inputs")
    frames = sample_frames(6, height=64, width=64)
    for name, asked in (("IN", NOTHING_ASKED), ("HDR", Asked("hevc", None, "yuv420p10le"))):
        with FrameSink(folder / f"{name}.mp4", 24, 64, 64, asked=asked) as sink:
            sink.write(frames)
    for name in ("IN", "scene.mp4"):
        shutil.copy(folder / "IN.mp4", folder / name)
    (folder / "frames").mkdir()
    for path in ("IN.jpg", "frames/0.png", "frames/1.png"):
        cv2.imwrite(str(folder / path), frames[0])
    mask = np.zeros((64, 64), np.uint8)
    mask[16:32, 24:40] = 255
    cv2.imwrite(str(folder / "MASK.png"), mask)
    return folder


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=[pytest.mark.slow] * any(word in text for word in SLOW)) for text in RUN_HERE]
)
def test_outpaint_commands_run_word_for_word(text, inputs, run_module, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "work")
    module, source, output, *options = OURS[text].words
    if output == "frames/":
        shutil.rmtree(tmp_path / "work/frames")  # an input of other commands
    monkeypatch.chdir(tmp_path / "work")
    before = set(Path().rglob("*"))
    done = run_module(module, source, output, *options)
    assert done.returncode == 0, done.stderr
    made = set(Path().rglob("*")) - before
    assert made and all(path.is_dir() or path.stat().st_size for path in made)


@pytest.mark.slow
def test_the_examples_of_the_api_run(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    values = {}
    for block in re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/api.md").read_text(), flags=re.M | re.S):
        exec(block, values)
    assert (
        values["frames"].shape == (6, 64, 64, 3)
        and values["wide"].shape == (6, 64, 114, 3)
        and Path("OUT.mp4").is_file()
    )


def test_other_commands_install_what_exists():
    tools = {
        command.line for command in COMMANDS_FOUND if not (command.words or command.needs or "pods" in command.page)
    }
    for line in tools:
        for file in re.findall(r"-r (\S+)", line):
            assert (ROOT / file).is_file(), line
        assert re.search(r"pip install|-m (pytest|venv)|^git clone|^cd |ruff|^\.ci/run", line), line


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("method", OUTPAINTERS)
def test_each_method_has_a_page(method):
    pages = {path.stem: path.read_text() for path in (ROOT / "docs/models").glob("*.md")}
    assert f"`{method}`" in pages["README"]
    assert method in pages or f"| `{method}` |" in pages["baselines"]


def test_the_readme_fills_two_screens_at_most():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80
