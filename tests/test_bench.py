import functools
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def run(run_module, monkeypatch):
    """Function (options): the command, in this process."""
    monkeypatch.chdir(ROOT)
    return functools.partial(run_module, "m3ddm_jax.bench")


def test_a_process_of_its_own_refuses_bad_input_with_one_line():
    command = [sys.executable, "-m", "m3ddm_jax.bench", "--what=nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "forward" in done.stderr and done.stderr.count("\n") == 1


def test_overrides_meet_the_config_that_belongs_to_what_is_measured(run):
    done = run("--what=generator", "--config.model.kind=m3ddm")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "kind m3ddm: e2fgvi is accepted" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what=flops", "--sweep=train.steps=1"], "--sweep is of training steps: --what=flops is not accepted"),
        (["--what=train", "--sweep=train.nothing=1"], "sweep over 'train.nothing=1': FIELD=VALUE,VALUE"),
        (["--what=transformer", "--topology=nowhere"], "topology "),
    ],
)
def test_what_is_not_measured_is_refused_with_one_line(run, options, message):
    done = run(*options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_the_report_is_what_is_printed_and_where_it_was_measured(run, tmp_path):
    done = run("--what=flops", "--config=configs/m3ddm_tiny.py", f"--report={tmp_path / 'report.json'}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0 and report["what"] == "flops" and "jax" in report["versions"]
    assert len(done.stdout.splitlines()) == len(report["result"])
    assert f"TFLOP a branch                   {report['result']['TFLOP a branch']:.4g}" in done.stdout
    assert len(report["load"]) == len(report["load_before"]) == 3
