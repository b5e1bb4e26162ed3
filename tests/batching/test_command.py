"""The command batch: results, report and exit codes, here and in processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from m3ddm_jax.api import outpainting
from m3ddm_jax.video import FrameSource

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = ("--aspect=16:9", "--method=edge")


def report(out):
    return [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]


@pytest.fixture
def batch(run_module):
    """Function (arguments): exit code, lines of stdout, lines of stderr."""

    def run(*arguments):
        done = run_module("m3ddm_jax.batch", *arguments)
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    return run


def test_a_failed_video_is_recorded_and_the_rest_goes_on(batch, clips, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "c.mp4", "d.mp4"):
        os.link(clips / "00.mp4", tmp_path / "in" / name)
    (tmp_path / "in" / "b.mp4").write_text("no video")
    made, make = [], outpainting.make_outpainter
    monkeypatch.setattr(
        outpainting, "make_outpainter", lambda *args, **options: made.append(args) or make(*args, **options)
    )
    code, out, err = batch(tmp_path / "in", tmp_path / "out", *FLAGS)
    assert (code, out) == (1, [f"{tmp_path / 'out'}: 3 done, 0 skipped, 1 failed of 4 videos, report.jsonl"])
    assert err == [f"batch: {tmp_path / 'in' / 'b.mp4'} is no readable video: Invalid data found when processing input"]
    assert len(made) == 1, "one load for all videos"
    lines = {pathlib.Path(line["video"]).name: line for line in report(tmp_path / "out")}
    assert lines["b.mp4"]["status"] == "failed" and "no readable video" in lines["b.mp4"]["error"]
    assert lines["a.mp4"]["status"] == "done" and lines["a.mp4"]["frames"] == 24 and lines["a.mp4"]["seconds"] > 0
    assert FrameSource(tmp_path / "out" / "d.mp4").width == 86
    assert sorted(os.listdir(tmp_path / "out")) == ["a.mp4", "c.mp4", "d.mp4", "report.jsonl"]


def test_the_same_command_goes_on(batch, clips, tmp_path):
    assert batch(clips / "0[0-2].mp4", tmp_path, *FLAGS)[0] == 0
    (tmp_path / "01.mp4").unlink()
    times = {name: os.stat(tmp_path / name).st_mtime_ns for name in ("00.mp4", "02.mp4")}
    code, out, err = batch(clips / "0[0-2].mp4", tmp_path, *FLAGS)
    assert (code, out, err) == (0, [f"{tmp_path}: 1 done, 2 skipped, 0 failed of 3 videos, report.jsonl"], [])
    assert times == {name: os.stat(tmp_path / name).st_mtime_ns for name in times}
    assert len(report(tmp_path)) == 4
    assert batch(clips / "0[0-2].mp4", tmp_path, *FLAGS)[0] == 0


def test_a_table_gives_each_video_its_target(batch, clips, tmp_path):
    (tmp_path / "list.csv").write_text(f'video,aspect,anchor\n{clips}/00.mp4,16:9,"0,0"\n{clips}/01.mp4,1:1,\n')
    assert batch(tmp_path / "list.csv", tmp_path / "out", "--method=edge", "--codec=hevc", "--fps=12")[0] == 0
    first, second = (FrameSource(tmp_path / "out" / name) for name in ("00.mp4", "01.mp4"))
    assert (first.width, first.height, second.width, second.height, first.fps) == (86, 48, 64, 64, 12)


@pytest.mark.parametrize("workers", [1, 2])
def test_notes_are_printed_and_reported(batch, clips, tmp_path, workers):
    damaged = tmp_path / "in" / "cut.mkv"
    damaged.parent.mkdir()
    outpainting.Outpainter("edge")(clips / "00.mp4", damaged, pad=(0, 0, 0, 0))
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    os.link(clips / "00.mp4", tmp_path / "in" / "whole.mp4")
    code, _, err = batch(tmp_path / "in", tmp_path / "out", *FLAGS, f"--workers={workers}")
    assert code == 0 and len(err) == 1 and err[0].startswith(f"batch: {damaged}") and "frames came" in err[0]
    (noted,) = [line for line in report(tmp_path / "out") if line["notes"]]
    assert noted["status"] == "done" and noted["notes"] == [err[0].removeprefix("batch: ")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "out", *FLAGS], "there is no file, folder or table nowhere"),
        (["CLIPS", "out"], "one of --aspect, --size, --pad and --mask is needed, found none"),
        (["CLIPS", "out", "--aspect=wide"], "--aspect must be WIDTH:HEIGHT"),
        (["CLIPS", "out", "--aspect=16:9,1:1"], "--aspect must be WIDTH:HEIGHT"),
        (["CLIPS", "out", "--aspect=1:1", "--method=magic"], "--method must be one of lite"),
        (["CLIPS", "out", "--aspect=1:1", "--method=edge", "--steps=3"], "--steps is an option of m3ddm"),
        (["CLIPS", "out", *FLAGS, "--devices=2"], "--devices must be cpu:NUMBER, gpu:NUMBER or tpu:NUMBER"),
        (
            ["CLIPS", "out", *FLAGS, "--ray=cluster"],
            "--ray must be HOST:PORT, ray://HOST:PORT or auto",
        ),
        (["CLIPS", "out", *FLAGS, "--ray=127.0.0.1:1"], "there is no Ray cluster at --ray 127.0.0.1:1: "),
        (["CLIPS", "CLIPS/out", *FLAGS], "lies in the source"),
    ],
)
def test_what_cannot_be_done_is_one_line(batch, clips, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = batch(*(argument.replace("CLIPS", str(clips)) for argument in arguments))
    assert (code, out, len(err)) == (2, [], 1) and words in err[0] and err[0].startswith("batch: ")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_killed_process_loses_nothing_and_doubles_nothing(clips, tmp_path):
    """The first process to work on a video is killed while it does."""
    command = [sys.executable, "-m", "m3ddm_jax.batch", clips, tmp_path, *FLAGS, "--workers=2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = []

    def kill():
        while process.poll() is None and not killed:
            parts = [path.name for path in tmp_path.glob(".*.part")]  # .NAME.PLACE-PROCESS-RANDOM.part
            for part in parts[:1]:
                killed.append(part)
                os.kill(int(part.rsplit(".", 2)[1].split("-")[1]), signal.SIGKILL)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    out, err = process.communicate()
    thread.join()
    assert killed and process.returncode == 0, err
    assert out == f"{tmp_path}: 12 done, 0 skipped, 0 failed of 12 videos, report.jsonl\n" and err == ""
    assert sorted(line["video"] for line in report(tmp_path)) == sorted(str(path) for path in clips.iterdir())
    assert all(len(FrameSource(tmp_path / path.name)) == 24 for path in clips.iterdir())
    assert not list(tmp_path.glob(".*"))


def test_what_no_process_can_load_is_one_line(clips, tmp_path):
    command = [sys.executable, "-m", "m3ddm_jax.batch", clips, tmp_path, *FLAGS, "--model=x", "--workers=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("batch: --model is an option of ")
