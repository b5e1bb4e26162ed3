import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from eval import protocol, run

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATIO = [protocol.Border("0.5", ratio=0.5)]


def write_clip(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])


def random_frames(seed, count=3, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 200, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Two clips; outputs are 10 levels too bright where generated (columns 0..8 and 24..32) and garbage where known."""
    for seed, name in enumerate(("one", "two")):
        frames = random_frames(seed, count=3 + seed)
        write_clip(tmp_path / "truth" / name, frames)
        output = frames + np.uint8(10)
        output[:, :, 8:24] = 255
        write_clip(tmp_path / "outputs" / name, output)
    return tmp_path


def test_known_pixels_are_replaced_by_the_truth(folders):
    result = run.evaluate(folders / "truth", folders / "outputs", regions=RATIO)
    region = result["regions"][0]
    assert [(clip["name"], clip["frames"]) for clip in region["clips"]] == [("one", 3), ("two", 4)]
    expected = -20 * np.log10(10 / 255)
    for scores in (*region["clips"], region["mean"], result["mean"]):
        assert scores["region"]["psnr_video"] == pytest.approx(expected, abs=1e-9)
        assert scores["whole"]["psnr_video"] == pytest.approx(expected + 10 * np.log10(2), abs=1e-9)
    assert len(region["clips"][1]["per_frame"]["region_mse"]) == 4


def test_several_ratios_lie_in_folders_of_their_own(folders):
    (folders / "both").mkdir()
    (folders / "outputs").rename(folders / "both" / "0.5")
    with pytest.raises(ValueError, match="0.25 is no folder"):
        run.evaluate(folders / "truth", folders / "both", regions=[*RATIO, protocol.Border("0.25", ratio=0.25)])


def test_only_the_first_frames(folders):
    result = run.evaluate(folders / "truth", folders / "outputs", regions=RATIO, max_frames=2)
    assert [clip["frames"] for clip in result["regions"][0]["clips"]] == [2, 2] and result["frames"] == "first 2"


def test_chunks_do_not_change_the_scores(folders, monkeypatch):
    whole = run.evaluate(folders / "truth", folders / "outputs", regions=RATIO)
    monkeypatch.setattr(run, "CHUNK", 1)
    chunked = run.evaluate(folders / "truth", folders / "outputs", regions=RATIO)
    for area in ("whole", "region"):
        assert chunked["mean"][area] == pytest.approx(whole["mean"][area], rel=1e-6)


def test_truth_is_brought_to_squares_of_the_preset(tmp_path):
    write_clip(tmp_path / "truth" / "a", np.full((1, 40, 64, 3), 80, np.uint8))
    write_clip(tmp_path / "outputs" / "a", np.full((1, 256, 256, 3), 90, np.uint8))
    clip = run.evaluate(tmp_path / "truth", tmp_path / "outputs", regions=RATIO)["regions"][0]["clips"][0]
    assert clip["height"] == clip["width"] == 256
    assert clip["region"]["psnr_video"] == pytest.approx(-20 * np.log10(10 / 255), abs=1e-9)


def test_a_method_outpaints_the_known_part_and_what_is_scored_is_kept(tmp_path):
    """Edge padding repeats the border column, so a clip of one colour a row is restored exactly."""
    rows = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, 2)
    striped = np.broadcast_to(rows, (2, 256, 256, 3))
    noise = random_frames(3, 2, 256, 256)
    write_clip(tmp_path / "truth" / "noise", noise)
    write_clip(tmp_path / "truth" / "striped", striped)
    result = run.evaluate(tmp_path / "truth", tmp_path / "kept", method="edge")
    assert [region["name"] for region in result["regions"]] == ["0.25", "0.66"]
    assert [clip["region"]["psnr_video"] > 99 for clip in result["regions"][1]["clips"]] == [False, True]
    for name, first, last in (("0.25", 32, 224), ("0.66", 84, 172)):
        frame = cv2.imread(str(sorted((tmp_path / "kept" / name / "noise").iterdir())[1]))[..., ::-1]
        np.testing.assert_array_equal(frame[:, first:last], noise[1, :, first:last])
        assert (frame[:, :first] != noise[1, :, :first]).any()
    again = run.evaluate(tmp_path / "truth", tmp_path / "kept")
    assert again["mean"] == result["mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "two").rename(out / "three"), "lacks two and has beyond the truth three"),
        (lambda out: next((out / "two").iterdir()).unlink(), "two has 3 frames, its truth has 4"),
        (
            lambda out: [cv2.imwrite(str(p), np.zeros((24, 30, 3), np.uint8)) for p in (out / "two").iterdir()],
            "two is 30x24, not 32x24 or 256x256",
        ),
    ],
)
def test_refuses_outputs_that_do_not_fit_the_truth(folders, change, message):
    change(folders / "outputs")
    with pytest.raises(ValueError, match=message):
        run.evaluate(folders / "truth", folders / "outputs", regions=RATIO)


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", "eval.run", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_command_prints_a_table_and_writes_json(folders):
    path = folders / "report.json"
    code, out, err = command(
        f"--truth={folders}/truth", f"--outputs={folders}/outputs", "--ratio=0.5", "--preset=strict", f"--report={path}"
    )
    assert code == 0, err
    assert out.count("\n") == 5 and "| two " in out
    read = json.loads(path.read_text())
    assert read["preset"]["name"] == "strict" and read["method"] is None
    assert read["mean"]["region"]["psnr_video"] == pytest.approx(-20 * np.log10(10 / 255), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--truth=nowhere", "--outputs=nowhere"], "nowhere is no folder"),
        (["--truth=nowhere"], "--outputs or --method"),
        (["--truth=nowhere", "--method=magic"], "magic"),
    ],
)
def test_command_refuses_bad_input_with_one_line(arguments, message):
    code, out, err = command(*arguments)
    assert code == 2 and not out
    assert message in err and err.count("\n") == 1
