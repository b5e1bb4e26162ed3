import dataclasses
import json

import cv2
import jax
import numpy as np
import pytest

from eval import evaluation
from eval.clips import Fit, Split, list_clips
from eval.evaluation import Method, Task, evaluate
from eval.protocol import PRESETS
from eval.regions import Border, Squares
from m3ddm_jax.pipelines.baselines import Blur, Edge

RATIO = (Border("0.5", ratio=0.5),)
ERROR = -20 * np.log10(10 / 255)


def make_task(root, preset=PRESETS["strict"], **changes):
    clips = list_clips(root / "truth")
    values = {"preset": preset, "regions": RATIO, "split": Split("all", tuple(clips)), "clips": clips}
    if "method" not in changes:
        values["outputs"] = root / "outputs"
    return Task(**{**values, **changes})


def small(preset="strict", **changes):
    """A preset whose frames are 24x32, so that methods have little to do."""
    return dataclasses.replace(PRESETS[preset], fit=Fit("squash", (24, 32)), **changes)


@dataclasses.dataclass
class Counting:
    """An outpainter that counts its clips, and from the clip `stop` on is interrupted."""

    stop: int = 99
    count: int = 0

    def __call__(self, source, canvas, rng):
        self.count += 1
        if self.count > self.stop:
            raise KeyboardInterrupt
        for frames in Blur()(source, canvas):
            yield frames + np.uint8(rng is not None)


def test_existing_outputs(folders):
    report, pictures = evaluate(make_task(folders))
    region = report["regions"][0]
    clips = region["runs"][0]["clips"]
    assert [(clip["name"], clip["frames"], clip["size"]) for clip in clips] == [
        ("one", 3, [32, 24]),
        ("two", 4, [32, 24]),
    ]
    assert region["frames"] == [{"size": [32, 24], "boxes": [[8, 0, 24, 24]]}]
    for scores in (*clips, region["runs"][0]["mean"], region["mean"], report["mean"]):
        assert scores["region"]["psnr_video"] == pytest.approx(ERROR, abs=1e-9)
        assert scores["whole"]["psnr_video"] == pytest.approx(ERROR + 10 * np.log10(2), abs=1e-9)
    assert len(clips[1]["per_frame"]["region_mse"]) == 4 and len(pictures["0.5"]) == 2
    assert report["missing"].keys() == {"lpips", "fvd", "kvd"} and "distance" not in report["mean"]
    assert report["method"] is None and report["std"] is None


def test_lpips_is_left_out_of_small_clips_by_default(folders, lpips):
    demanding = dataclasses.replace(lpips, module=lpips.module.clone(smallest_side=25))
    with pytest.raises(ValueError, match="one is 32x24, lpips needs sides of at least 25 pixels"):
        evaluate(make_task(folders, lpips=demanding))
    report, _ = evaluate(make_task(folders, lpips=demanding, optional=frozenset({"lpips"})))
    assert report["missing"]["lpips"] == "one is 32x24, lpips needs sides of at least 25 pixels"
    assert "lpips" not in report["mean"]["whole"]


def test_the_truth_is_brought_to_outputs_of_the_protocols_size(tmp_path, write_clip):
    write_clip(tmp_path / "truth" / "a", np.full((1, 40, 64, 3), 80, np.uint8))
    write_clip(tmp_path / "outputs" / "a", np.full((1, 256, 256, 3), 90, np.uint8))
    clip = evaluate(make_task(tmp_path))[0]["regions"][0]["runs"][0]["clips"][0]
    assert clip["size"] == [256, 256] and clip["region"]["psnr_video"] == pytest.approx(ERROR, abs=1e-9)


def test_networks_give_their_metrics(folders, i3d, lpips):
    """Whole clips of four frames are enough for the stand-in."""
    distance = dataclasses.replace(PRESETS["strict"].distance, frames=3)
    preset = dataclasses.replace(PRESETS["strict"], distance=distance)
    with pytest.raises(ValueError, match="one has only 3 frames, fvd needs 9"):
        evaluate(make_task(folders, preset=preset, i3d=i3d))
    report, _ = evaluate(make_task(folders, preset=preset, i3d=i3d, optional=frozenset({"i3d"})))
    assert report["missing"]["fvd"] == "one has only 3 frames, fvd needs 9" and report["networks"]["i3d"] is None
    report, _ = evaluate(make_task(folders, lpips=lpips))
    assert report["mean"]["region"]["lpips"] == pytest.approx(3 * 10 / 127.5, rel=1e-5)
    assert report["missing"].keys() == {"fvd", "kvd"} and report["networks"]["lpips"]["sha256"] == "def"


def test_the_distance_is_over_all_clips(tmp_path, write_clip, random_frames, i3d):
    """Both clips have the same error, so their features differ by as much: the means alone count."""
    for seed, name in enumerate(("one", "two")):
        frames = random_frames(seed, 16)
        write_clip(tmp_path / "truth" / name, frames)
        write_clip(tmp_path / "outputs" / name, frames + np.uint8(20))
    report, _ = evaluate(make_task(tmp_path, i3d=i3d))
    run = report["regions"][0]["runs"][0]
    # Half of the frame is 20 levels too bright: 9 features differ by (20 / 127.5) / 2.
    assert run["mean"]["distance"]["fvd"] == pytest.approx(9 * (10 / 127.5) ** 2, rel=0.02)
    assert run["intervals"].keys() == {"fvd", "kvd"} and not {"fvd", "kvd"} & report["missing"].keys()


def test_frames_weigh_the_same_where_the_preset_says_so(folders, write_clip, random_frames):
    path = folders / "outputs" / "two"
    for number, frame in enumerate(random_frames(1, 4)):
        cv2.imwrite(str(path / f"{number:05d}.png"), (frame + np.uint8(20))[..., ::-1])
    by_clip, by_frame = (evaluate(make_task(folders, preset=PRESETS[name]))[0] for name in ("strict", "inpaint50"))
    one, two = ERROR, -20 * np.log10(20 / 255)
    assert by_clip["mean"]["region"]["psnr_frame"] == pytest.approx((one + two) / 2)
    assert by_frame["mean"]["region"]["psnr_frame"] == pytest.approx((3 * one + 4 * two) / 7)


def test_a_method_outpaints_the_known_part_and_what_is_scored_is_kept(tmp_path, write_clip, random_frames):
    """Edge padding repeats the border column, so a clip of one colour a row is restored exactly."""
    rows = np.repeat(np.arange(24, dtype=np.uint8)[:, None, None], 3, 2)
    noise = random_frames(3, 2)
    write_clip(tmp_path / "truth" / "noise", noise)
    write_clip(tmp_path / "truth" / "striped", np.broadcast_to(rows, (2, 24, 32, 3)))
    regions = (Border("0.25", ratio=0.25), Border("0.66", ratio=0.66))
    values = {"regions": regions, "preset": small(), "outputs": tmp_path / "kept"}
    report, _ = evaluate(make_task(tmp_path, method=Method(Edge(), {"name": "edge"}), **values))
    clips = report["regions"][1]["runs"][0]["clips"]
    assert [clip["region"]["psnr_video"] > 99 for clip in clips] == [False, True]
    assert [clip["motion"]["known_error"] for clip in clips] == [0, 0]
    for name, first, last in (("0.25", 4, 28), ("0.66", 10, 22)):
        frame = cv2.imread(str(sorted((tmp_path / "kept" / name / "noise").glob("*.png"))[1]))[..., ::-1]
        np.testing.assert_array_equal(frame[:, first:last], noise[1, :, first:last])
        assert (frame[:, :first] != noise[1, :, :first]).any()
    again, _ = evaluate(make_task(tmp_path, **values))
    np.testing.assert_equal(again["mean"], report["mean"])


def test_seeds_have_folders_and_three_of_them_a_deviation(folders):
    def seeded(source, canvas, rng):
        level = int(jax.random.randint(rng, (), 0, 99))
        yield np.full((len(source), canvas.height, canvas.width, 3), level, np.uint8)

    method = Method(seeded, {"name": "seeded"})
    values = {"preset": small(), "seeds": (0, 1, 2), "outputs": folders / "kept"}
    report, _ = evaluate(make_task(folders, method=method, **values))
    runs = [run["mean"]["region"]["psnr_video"] for run in report["regions"][0]["runs"]]
    assert len(set(runs)) == 3
    for scores in (report, report["regions"][0]):
        assert scores["mean"]["region"]["psnr_video"] == pytest.approx(np.mean(runs))
        assert scores["std"]["region"]["psnr_video"] == pytest.approx(np.std(runs, ddof=1))
    assert sorted(path.name for path in (folders / "kept").iterdir()) == ["seed0", "seed1", "seed2"]
    again, _ = evaluate(make_task(folders, **values))
    np.testing.assert_equal(again["std"], report["std"])
    two, _ = evaluate(make_task(folders, method=method, preset=small(), seeds=(0, 1)))
    assert two["std"] is None


def test_an_interrupted_run_goes_on(folders, monkeypatch):
    monkeypatch.setattr(evaluation.jax, "local_device_count", lambda: 2)  # one clip at a time is kept
    values = {"preset": small(), "score_cache": folders / "report.clips"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(make_task(folders, method=Method(Counting(stop=1), {"name": "x"}), **values))
    assert [path.name for path in (folders / "report.clips").iterdir()] == ["one.0.5.0.npz"]
    rest, everything = Counting(), Counting()
    resumed = evaluate(make_task(folders, method=Method(rest, {"name": "x"}), **values))
    fresh = evaluate(make_task(folders, method=Method(everything, {"name": "x"}), preset=small()))
    assert (rest.count, everything.count) == (1, 2)
    np.testing.assert_equal(resumed, fresh)


def test_kept_scores_hold_only_for_what_they_came_from(folders, i3d, lpips):
    def count(**changes):
        outpainter = Counting()
        about = changes.pop("about", {"name": "x"})
        values = {"preset": small(), "score_cache": folders / "report.clips", **changes}
        evaluate(make_task(folders, method=Method(outpainter, about), **values))
        return outpainter.count

    assert [count(), count()] == [2, 0]
    assert count(about={"name": "x", "steps": 2}) == 2
    assert [count(lpips=lpips), count(lpips=lpips)] == [2, 0]
    assert count(max_frames=2) == 2
    assert count(preset=small(ssim="uniform7")) == 2
    assert count(seeds=(1,)) == 2 and count() == 2
    (folders / "truth" / "two" / "00003.png").unlink()
    assert count() == 1, "only the clip that changed"
    (folders / "report.clips" / "one.0.5.0.npz").write_bytes(b"torn")
    assert count() == 1
    assert count(outputs=folders / "kept") == 2, "what is to be kept must be made"


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
def test_outputs_that_do_not_fit_the_truth_are_refused_before_anything_is_scored(folders, change, message):
    change(folders / "outputs")
    with pytest.raises(ValueError, match=message):
        evaluate(make_task(folders, score_cache=folders / "report.clips"))
    assert not (folders / "report.clips").exists()


def test_outputs_beyond_a_split_are_left_alone(folders):
    clips = {"two": folders / "truth" / "two"}
    report, _ = evaluate(make_task(folders, clips=clips, split=Split("mine", ("two",))))
    assert report["split"] == {"name": "mine", "clips": 1, "sha256": Split("mine", ("two",)).sha256}
    assert [clip["name"] for clip in report["regions"][0]["runs"][0]["clips"]] == ["two"]


def test_refuses_regions_that_lack_or_that_a_method_cannot_make(folders):
    with pytest.raises(ValueError, match="isvi_object generates what masks say"):
        evaluate(make_task(folders, preset=PRESETS["isvi_object"], regions=()))
    squares = Squares("squares", columns=2, rows=1, side=0.25)
    with pytest.raises(ValueError, match="outpaints around a box, not squares"):
        evaluate(make_task(folders, method=Method(Edge(), {}), regions=(squares,)))
    with pytest.raises(ValueError, match="0.5 is no folder"):
        evaluate(make_task(folders, regions=(*RATIO, Border("0.25", ratio=0.25))))


def test_a_method_is_judged_with_its_source_pasted(folders):
    """As outpaint writes it, also where the preset itself pastes nothing."""

    def careless(source, canvas, rng):
        yield np.full((len(source), canvas.height, canvas.width, 3), 250, np.uint8)

    report, _ = evaluate(make_task(folders, preset=small(paste=False), method=Method(careless, {})))
    assert report["mean"]["motion"]["known_error"] == 0
    assert report["mean"]["whole"]["psnr_video"] > report["mean"]["region"]["psnr_video"] + 3


def test_frames_with_nan_are_refused_by_name(folders):
    def broken(source, canvas, rng):
        yield np.full((len(source), canvas.height, canvas.width, 3), np.nan, np.float32)

    with pytest.raises(ValueError, match="one, counted from frame 0: .*frame 0 holds nan"):
        evaluate(make_task(folders, preset=small(), method=Method(broken, {}), score_cache=folders / "report.clips"))
    assert not (folders / "report.clips").exists()


def test_a_report_says_what_makes_its_numbers_comparable(folders):
    report, _ = evaluate(make_task(folders, preset=PRESETS["motia"], max_frames=2))
    assert report["preset"]["distance"]["bn_epsilon"] == 1e-5 and report["preset"]["version"] == 1
    assert report["frames"] == "first 2" and report["seeds"] == [0]
    assert report["jax"]["devices"] == "8 cpu"
    assert set(report["code"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}
    json.dumps({name: value for name, value in report.items() if name not in ("regions", "mean")}, allow_nan=False)
