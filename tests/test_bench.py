import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "m3ddm_jax.bench", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--what=nothing"], "forward"),
        # Overrides meet the config that belongs to what is measured.
        (["--what=generator", "--config.model.kind=m3ddm"], "kind m3ddm: e2fgvi is accepted"),
    ],
)
def test_command_refuses_bad_input_with_one_line(options, message):
    done = run(*options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_the_report_is_what_is_printed_and_where_it_was_measured(tmp_path):
    done = run("--what=flops", "--config=configs/test.py", f"--report={tmp_path / 'report.json'}")
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0 and report["what"] == "flops" and "jax" in report["versions"]
    assert len(done.stdout.splitlines()) == len(report["result"])
    assert f"TFLOP a branch                   {report['result']['TFLOP a branch']:.4g}" in done.stdout
    assert len(report["load"]) == len(report["load_before"]) == 3
