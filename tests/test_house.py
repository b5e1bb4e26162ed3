"""The files around the code: CI runs what the README says, and nothing names a place on somebody's machine."""

import os
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A folder with .ci/run and an environment of stubs: `python3 -m venv` makes nothing, pip and ruff succeed, and
    python prints its arguments."""
    stubs, environment = tmp_path / "stubs", tmp_path / "repo" / ".venv" / "bin"
    for folder in (stubs, environment, tmp_path / "repo" / ".ci"):
        folder.mkdir(parents=True)
    for stub in (stubs / "python3", stubs / "apt-get", environment / "pip", environment / "ruff"):
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
    (environment / "python").write_text('#!/bin/sh\necho "$@"\n')
    (environment / "python").chmod(0o755)
    (tmp_path / "repo" / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())

    def run(readme: str) -> subprocess.CompletedProcess:
        (tmp_path / "repo" / "README.md").write_text(readme)
        env = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}", "CI": "true"}
        command = ["bash", tmp_path / "repo" / ".ci" / "run"]
        return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    run.ruff, run.python = environment / "ruff", environment / "python"
    return run


def readme_with(command: str) -> str:
    return f"# title\n\n```sh\necho another\n```\n<!-- tests -->\n```sh\n{command}\n```\n<!-- end of tests -->\n"


def test_ci_runs_the_readme_command_and_the_slow_tests(checkout):
    done = checkout(readme_with("echo one && echo two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one", "two", "slow tests", "-m pytest -q -m slow --numprocesses=3"]


def test_ci_fails_with_the_command(checkout):
    assert checkout(readme_with("false")).returncode != 0
    assert checkout(readme_with("false | true")).returncode != 0


def test_ci_fails_with_the_slow_tests(checkout):
    checkout.python.write_text("#!/bin/sh\nexit 1\n")
    assert checkout(readme_with("true")).returncode != 0


def test_ci_fails_without_a_command(checkout):
    done = checkout("# title\n")
    assert done.returncode != 0 and "no test command" in done.stderr


def test_ci_fails_when_ruff_complains(checkout):
    checkout.ruff.write_text("#!/bin/sh\nexit 1\n")
    assert checkout(readme_with("true")).returncode != 0


def test_readme_test_command_is_one_line_and_complete():
    lines = (ROOT / "README.md").read_text().split("<!-- tests -->")[1].split("<!-- end of tests -->")[0].split("\n")
    command = [line for line in lines if line and not line.startswith("```")]
    assert len(command) == 1
    for part in ("python3 -m venv .venv", "-r requirements.txt", "-r requirements-test.txt", "-m pytest"):
        assert part in command[0]


def test_ci_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_nothing_names_a_place_outside_the_project():
    """Absolute paths into home folders, temporary folders and mounts have no business in a portable project."""
    place = re.compile(r"(?<![\w.$}/-])/(home|root|Users|work|tmp|mnt|opt)/[\w.]")
    files = [p for top in ("m3ddm_jax", "configs", "data", "eval", "tests", "docs") for p in (ROOT / top).rglob("*.*")]
    files += [ROOT / "README.md", ROOT / "pyproject.toml", *ROOT.glob("requirements*.txt")]
    text_files = [p for p in files if p.suffix in (".py", ".md", ".toml", ".txt", ".json")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in text_files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if place.search(line)
    ]
    assert not found, "\n".join(found)
