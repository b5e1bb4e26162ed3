"""The wheel: what is in it, what it requires, and that it works alone, far from the checkout."""

import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

import m3ddm_jax
from m3ddm_jax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["tool"]["setuptools"]["dynamic"]["optional-dependencies"]


def requirements(*names):
    """The requirements of files, those that they include too."""
    found = set()
    for name in names:
        for line in (ROOT / name).read_text().splitlines():
            if line.startswith("-r "):
                found |= requirements(line.removeprefix("-r "))
            elif line and not line.startswith("#"):
                found.add(line)
    return found


def normal(requirement):
    """A requirement in one spelling: Name[extra]>=1,<2 as name[extra]<2,>=1."""
    name, extra, versions = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?([<>=~!].*)?", requirement.replace(" ", "")).groups()
    return re.sub(r"[-_.]+", "-", name).lower(), extra, frozenset((versions or "").split(","))


def test_the_extra_test_is_what_the_readme_installs():
    assert requirements("requirements-test.txt") == requirements(*EXTRAS["test"]["file"])
    files = {file for extra in EXTRAS.values() for file in extra["file"]} | {
        "requirements.txt",
        "requirements-test.txt",
    }
    assert files == {path.name for path in ROOT.glob("requirements*.txt")}, "each file is an extra"


def test_every_command_is_a_module_that_python_runs_too():
    assert list(COMMANDS) == ["outpaint", "batch", "demo", "convert", "prepare", "train", "evaluate", "plan", "bench"]
    for name, command in COMMANDS.items():
        path = ROOT / (command.module.replace(".", "/") + ".py")
        assert '__name__ == "__main__"' in path.read_text(), name


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "outpaint a video"),
        (["--help"], 0, "m3ddm COMMAND --help"),
        (["--version"], 0, m3ddm_jax.__version__),
        (["outpain"], 2, "m3ddm: COMMAND must be one of outpaint, .*, found 'outpain', did you mean outpaint?"),
        (["xyz"], 2, "found 'xyz'$"),
        (["outpaint", "IN"], 2, "outpaint: IN OUT expected, found IN"),
    ],
)
def test_the_command_m3ddm(arguments, code, words):
    done = subprocess.run([sys.executable, "-m", "m3ddm_jax", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code and re.search(words, (done.stderr if code else done.stdout).strip())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy: setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("build")
    for path in [
        *ROOT.glob("requirements*.txt"),
        *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")),
    ]:
        shutil.copy(path, folder)
    for name in ("m3ddm_jax", "data", "eval", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, folder])
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(command, folder=None, code=0, **environment):
    """Runs a command away from the checkout; returns what it prints."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_environment(folder, *installed):
    """An empty environment in which packages are installed and, by a .pth file, found what they depend on."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    flags = ["-q", "--no-deps", "--no-index", "--no-build-isolation"]
    run([sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", *flags, *installed])
    return folder / "bin", site


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone_and_requires_what_the_files_say(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    tops = {name.split("/")[0] for name in names}
    assert tops == {"m3ddm_jax", f"m3ddm_jax-{m3ddm_jax.__version__}.dist-info"}
    assets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "m3ddm_jax").rglob("*") if path.is_file()}
    assert {name for name in assets if "__pycache__" not in name} <= set(names)
    found = {}
    for line in email.message_from_string(metadata).get_all("Requires-Dist"):
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        found.setdefault(extra and extra[1], set()).add(normal(requirement.strip()))
    expected = {name: set(map(normal, requirements(*extra["file"]))) for name, extra in EXTRAS.items()}
    assert found == {None: set(map(normal, requirements("requirements.txt"))), **expected}


@pytest.mark.slow
def test_the_wheel_works_alone(wheel, tmp_path):
    scripts, site = make_environment(tmp_path / "env", wheel)
    assert not [name for name in ("data", "eval", "configs") if (site / name).exists()]
    (tmp_path / "elsewhere").mkdir()
    code = (
        "import m3ddm_jax as m\n"
        "frames = m.sample_frames(8, height=64, width=64)\n"
        "wide = m.outpaint(frames, aspect='16:9')\n"
        "m.outpaint(frames, 'in.mp4', pad=(0, 0, 0, 0), method='edge')\n"
        "print(m.__file__, wide.shape)"
    )
    told = run([scripts / "python", "-c", code], tmp_path / "elsewhere")
    assert told == f"{site}/m3ddm_jax/__init__.py (8, 64, 114, 3)\n"
    m3ddm = scripts / "m3ddm"
    flags = ["--aspect=16:9", "--method=edge"]
    assert "out.mp4: 114x64, 8 frames" in run([m3ddm, "outpaint", "in.mp4", "out.mp4", *flags], tmp_path / "elsewhere")
    module = [scripts / "python", "-m", "m3ddm_jax.outpaint", "in.mp4", "frames/", *flags]
    assert "frames: 114x64, 8 frames" in run(module, tmp_path / "elsewhere")
    assert "2 done" in run([m3ddm, "batch", "*.mp4", "wide", *flags], tmp_path / "elsewhere")
    assert "KIND must be one of m3ddm" in run([m3ddm, "convert", "x", "y", "z"], tmp_path / "elsewhere", code=2)
    for name in ("train", "evaluate", "prepare", "plan", "bench"):
        line = f"m3ddm: {name} needs a checkout of the project: run `pip install -e .` in one\n"
        assert run([m3ddm, name], tmp_path / "elsewhere", code=2) == line


@pytest.mark.slow
def test_an_editable_installation_trains_and_evaluates_from_the_checkout(wheel, tmp_path):
    scripts, site = make_environment(tmp_path / "env", "-e", wheel.parent)
    m3ddm = scripts / "m3ddm"
    assert "SOURCE OUT expected" in run([m3ddm, "prepare"], tmp_path, code=2)
    assert "--truth" in run([m3ddm, "evaluate"], tmp_path, code=2)
    told = run([m3ddm, "train", "--config=configs/m3ddm_tiny.py", "--workdir=/dev/null/x"], wheel.parent, code=2)
    assert told.splitlines()[-1].startswith("train: ") and "/dev/null" in told
    for name in ("data", "eval", "configs"):
        assert "ModuleNotFoundError" in run([scripts / "python", "-c", f"import {name}"], tmp_path, code=1)
