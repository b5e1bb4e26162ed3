import functools
import shutil

import jax
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.globalpaint import GlobalPaintUNet, TextAndVideo
from m3ddm_jax.models.openclip import OpenCLIPVision
from m3ddm_jax.pipelines import globalpaint
from m3ddm_jax.pipelines.globalpaint import GlobalPaint
from m3ddm_jax.pipelines.latent_cache import LatentCache
from m3ddm_jax.video import FrameSource
from m3ddm_jax.weights import save_model

DIFFUSION = {"schedule": "cosine", "zero_terminal_snr": True, "shift": 1.0, "prediction": "x0", "unknown": "filled"}
SAMPLE = {
    "lines": 16,
    "global_frames": 3,
    "num_frames": 4,
    "noise_scale": 1.0,
    "strength": 1.0,
    "solver": "ddim",
    "steps": 2,
    "guidance_local": 1.0,
    "guidance_global": 2.0,
    "guidance_interval": [0.0, 1.0],
    "clip": 2.0,
    "seam": "hard",
}
SIZES = {
    "latent_channels": 48,
    "block_out_channels": (8,),
    "attention_levels": (True,),
    "layers_per_block": 1,
    "num_heads": (1,),
    "norm_num_groups": 4,
    "text_dim": 8,
    "est": "1d",
    "num_global_tokens": 3,
    "global_tokens_dim": 8,
    "patch_width": 8,
    "extractor_width": 8,
    "extractor_heads": 2,
    "frame_tokens": 2,
    "extractor_depths": (1, 1),
}
ENCODER = OpenCLIPVision(image_size=16, patch_size=8, width=8, layers=2, num_heads=2, mlp_width=8)
CUT = 5
CANVAS = Canvas.from_aspect(20, 16, 1.5)


abstract_variables = functools.cache(registry.abstract_variables)  # a second a network


def random_variables(module, seed):
    rng = np.random.default_rng(seed)
    shapes = abstract_variables(module)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def save(folder, stage, seed, **sizes):
    module = GlobalPaintUNet(**{**SIZES, **sizes})
    save_model(
        folder,
        module,
        random_variables(module, seed),
        settings={"diffusion": DIFFUSION, "sample": SAMPLE, "stage": stage},
        autoencoder=(PatchCodec(4), {}),
        image_encoder=(ENCODER, random_variables(ENCODER, 7)) if module.global_guidance else None,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """key/, interp/, and plain/, a key-frame model without global guidance."""
    folder = tmp_path_factory.mktemp("models")
    save(folder / "key", "key_frames", 0)
    save(folder / "interp", "interpolation", 1)
    save(folder / "plain", "key_frames", 0, global_guidance=False)
    return folder


@pytest.fixture(scope="module")
def hierarchical(folders):
    return GlobalPaint(folders / "key", interpolation_model=folders / "interp")


@pytest.fixture(scope="module")
def sequential(folders):
    return GlobalPaint(folders / "key", sequential=True)


def two_shots(num_frames=11, height=20, width=16):
    """A slow dark shot, and from frame 5 on a bright one."""
    time, y, x = np.ogrid[:num_frames, :height, :width]
    grey = np.where(time < CUT, 3 * y + time, 250 - 3 * x - time)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8)


def run(outpainter, frames, canvas=CANVAS):
    return np.concatenate(list(outpainter(FrameSource.from_array(frames), canvas, jax.random.key(0))))


@pytest.fixture
def made(monkeypatch):
    """(frame, latents) as they are made."""
    written, write = [], LatentCache.write

    def record(self, frame, latents):
        written.append((frame, latents))
        write(self, frame, latents)

    monkeypatch.setattr(LatentCache, "write", record)
    return written


def test_a_video_with_a_cut_makes_every_frame_once(hierarchical, made):
    frames = two_shots()
    source = FrameSource.from_array(frames)
    assert globalpaint.source_cuts(source) == [CUT]
    assert run(hierarchical, frames).shape == (len(frames), CANVAS.height, CANVAS.width, 3)
    order = [frame for frame, _ in made]
    assert sorted(order) == list(range(len(frames))), "each frame once"
    assert set(order[:6]) == {0, 2, 4, 5, 7, 10}, "key frames first, the ends of both shots among them"


def test_key_frames_are_known_in_their_latents_and_text_is_shared(hierarchical, made, monkeypatch):
    denoiser, seen = hierarchical._stages[1].denoiser, []
    sample = denoiser.sample

    def record(conditions, guess, **noise):
        seen.append((guess, conditions))
        return sample(conditions, guess, **noise)

    monkeypatch.setattr(denoiser, "sample", record)
    run(hierarchical, two_shots())
    latents = dict(made)
    guess, conditions = seen[0]
    assert len(seen) == 4 and np.asarray(conditions.guides).tolist() == [[True, False, True, True]]
    for place, frame in ((0, 0), (2, 2), (3, 2)):
        np.testing.assert_array_equal(conditions.masked_latents[0, place], latents[frame])
        np.testing.assert_array_equal(guess[0, place], latents[frame])
        assert not np.asarray(conditions.mask)[0, place].any()
    assert np.asarray(conditions.mask)[0, 1].any(), "a frame between has its own known pixels alone"


def test_windows_sampled_together_equal_windows_sampled_alone(folders, hierarchical, made, monkeypatch):
    frames = two_shots()
    run(hierarchical, frames)
    alone = dict(made)
    made.clear()
    together = GlobalPaint(folders / "key", interpolation_model=folders / "interp", windows=2)
    contexts, join = [], globalpaint._ShotContexts._join

    def record(self, *layers):
        contexts.append(join(self, *layers))
        return contexts[-1]

    monkeypatch.setattr(globalpaint._ShotContexts, "_join", record)
    assert together._devices.mesh.size == 2
    run(together, frames)
    for frame, latents in made:
        # Other batch sizes sum in another order.
        np.testing.assert_allclose(latents, alone[frame], atol=1e-4)
    assert all(isinstance(layer, TextAndVideo) for layer in contexts)
    assert {layer.text.keys.shape[0] for layer in contexts} == {1}, "a text is never repeated"
    assert {layer.video.keys.shape[0] for layer in contexts} == {2}


def test_shots_know_nothing_of_each_other(hierarchical):
    frames = two_shots()
    before = run(hierarchical, frames)
    frames[CUT:] //= 2
    frames[CUT:] += 100
    after = run(hierarchical, frames)
    np.testing.assert_array_equal(after[:CUT], before[:CUT])
    assert (after[CUT:] != before[CUT:]).any()


@pytest.mark.parametrize(("name", "reaches"), [("key", True), ("plain", False)])
def test_what_a_shot_shows_reaches_windows_without_it_by_tokens_alone(folders, sequential, made, name, reaches):
    outpainter = sequential if name == "key" else GlobalPaint(folders / name, sequential=True)
    frames = two_shots(CUT)
    run(outpainter, frames)
    first, made[:] = dict(made), []
    frames[-1] += 9
    run(outpainter, frames)
    assert (dict(made)[0] != first[0]).any() == reaches


def test_a_sequence_needs_no_second_model(sequential, made):
    frames = two_shots()
    assert run(sequential, frames).shape == (len(frames), CANVAS.height, CANVAS.width, 3)
    order = [frame for frame, _ in made]
    assert order == list(range(len(frames)))


def test_one_frame(hierarchical):
    assert run(hierarchical, two_shots(1)).shape == (1, CANVAS.height, CANVAS.width, 3)


def test_more_cuts_than_key_frames(hierarchical, monkeypatch):
    frames = two_shots(9)
    monkeypatch.setattr(globalpaint, "source_cuts", lambda source: list(range(1, 9)))
    assert run(hierarchical, frames).shape == (9, CANVAS.height, CANVAS.width, 3)


def test_a_source_of_less_than_a_patch_gives_tokens_of_parameters_alone(sequential):
    canvas = Canvas.from_size(20, 6, CANVAS.height, CANVAS.width)
    contexts = []
    for brightness in (10, 200):
        source = FrameSource.from_array(np.full((2, 20, 6, 3), brightness, np.uint8))
        shots = globalpaint._ShotContexts(source, canvas, [0, 2], 3, sequential._stages[0], sequential._devices)
        contexts.append(shots._encode_shot(0))
    jax.tree.map(np.testing.assert_array_equal, *contexts)
    assert run(sequential, two_shots(2, 20, 6), canvas).shape == (2, CANVAS.height, CANVAS.width, 3)


def test_folders_that_do_not_fit_are_named(folders, tmp_path):
    key, interp = folders / "key", folders / "interp"
    for name in ("other", "blind", "wide"):
        shutil.copytree(interp, tmp_path / name)
    wide = ENCODER.clone(width=16)
    save_model(tmp_path / "wide" / "image_encoder", wide, random_variables(wide, 0))
    save_model(tmp_path / "other" / "autoencoder", PatchCodec(4, scale=3.0), {})
    shutil.rmtree(tmp_path / "blind" / "image_encoder")
    for arguments, message in (
        ({}, "needs the folder of a key_frames model: `model`"),
        ({"model": key}, "needs `interpolation_model`, or `sequential`"),
        ({"model": key, "interpolation_model": interp, "sequential": True}, "accepts no `interpolation_model`"),
        ({"model": interp, "sequential": True}, "interp is an interpolation model: `model` accepts a key_frames one"),
        (
            {"model": key, "interpolation_model": key},
            "key is a key_frames model: `interpolation_model` accepts an interpolation one",
        ),
        ({"model": key / "autoencoder", "sequential": True}, "holds a model of kind patch_codec: .* kind globalpaint"),
        ({"model": key, "interpolation_model": tmp_path / "blind"}, "blind has no image_encoder/"),
        ({"model": key, "interpolation_model": tmp_path / "wide"}, "wide holds an image encoder of width 16: .* of 8"),
        ({"model": key, "interpolation_model": tmp_path / "other"}, "key and .*other hold different autoencoders"),
        ({"model": key, "sequential": True, "settings": {"canvas": "square"}}, "no setting canvas: lines"),
    ):
        with pytest.raises(ValueError, match=message):
            GlobalPaint(**arguments)


class Carried:
    """`CarriedPixels` that know a grey band on the left of every frame."""

    def __init__(self, source, canvas):
        self.frames = canvas.paste(np.full((len(source), canvas.height, canvas.width, 3), 77, np.uint8), source[:])
        self.masks = np.repeat(canvas.mask()[None], len(source), axis=0)
        self.masks[:, :, :3] = 0

    def __getitem__(self, indices):
        return self.frames[list(indices)], self.masks[list(indices)]


def test_carried_pixels_come_back_as_they_are(folders, monkeypatch):
    monkeypatch.setattr(globalpaint, "CarriedPixels", Carried)
    outpainted = run(GlobalPaint(folders / "plain", sequential=True, propagate=True), two_shots())
    assert (outpainted[:, :, :3] == 77).all() and (outpainted[:, :, 3] != 77).any()
