import jax
import numpy as np
import pytest

from configs import common
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.pipelines import m3ddm
from m3ddm_jax.pipelines.m3ddm import M3DDM, PRESETS, M3ddmSettings
from m3ddm_jax.weights import save_model

SETTINGS = {
    "diffusion": {
        "schedule": "cosine",
        "zero_terminal_snr": True,
        "shift": 1.0,
        "prediction": "x0",
        "unknown": "filled",
    },
    "sample": {
        "canvas": "target",
        "lines": 16,
        "guess": "spread",
        "latent_mask": "max",
        "posterior": "mean",
        "global_frames": 3,
        "global_size": 24,
        "windows": "parallel",
        "num_frames": 4,
        "strides": [3, 1],
        "noise": "frame",
        "noise_scale": 1.0,
        "strength": 1.0,
        "solver": "dpm++",
        "steps": 2,
        "guidance_local": 2.0,
        "guidance_global": 1.0,
        "guidance_interval": [0.0, 1.0],
        "clip": 2.0,
        "seam": "matched",
    },
}


class Frames:
    """A FrameSource of an array."""

    def __init__(self, frames, fps=24.0):
        self.frames, self.fps = frames, fps

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    module = M3DDMUNet(
        latent_channels=48,
        block_out_channels=(8, 8),
        attention_levels=(False, True),
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        global_widths=(8, 8, 8, 8, 8),
        frame_embedding_dim=8,
    )
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    folder = tmp_path_factory.mktemp("models") / "miniature"
    save_model(folder, module, variables, settings=SETTINGS, autoencoder=(PatchCodec(4), {}))
    return folder


@pytest.fixture(scope="module")
def outpainter(folder):
    return M3DDM(folder)


def video(num_frames, height=20, width=16):
    return Frames(np.random.default_rng(1).integers(0, 256, (num_frames, height, width, 3), np.uint8))


def outpaint(outpainter, source, canvas, seed=0):
    return np.concatenate(list(outpainter(source, canvas, jax.random.key(seed))))


def test_a_second_video_of_the_same_size_compiles_nothing(outpainter, traced):
    canvas = Canvas.from_aspect(20, 16, 2.0)
    first = outpaint(outpainter, video(4), canvas)
    assert traced
    traced.clear()
    np.testing.assert_array_equal(outpaint(outpainter, video(4), canvas), first)
    assert traced == []


@pytest.mark.parametrize("num_frames", [1, 4, 23])
def test_every_frame_comes_once_at_the_size_of_the_canvas(outpainter, num_frames):
    canvas = Canvas.from_aspect(20, 16, 2.0)
    frames = outpaint(outpainter, video(num_frames), canvas)
    assert frames.shape == (num_frames, canvas.height, canvas.width, 3)
    assert frames.dtype == np.uint8


def test_a_seed_repeats_and_another_differs(outpainter):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(5)
    first = outpaint(outpainter, source, canvas)
    np.testing.assert_array_equal(outpaint(outpainter, source, canvas), first)
    assert (outpaint(outpainter, source, canvas, seed=1) != first).any()


@pytest.mark.slow
def test_windows_sampled_together_equal_windows_sampled_alone(folder, outpainter):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(11)
    alone = outpaint(outpainter, source, canvas).astype(int)
    together = outpaint(M3DDM(folder, windows=3), source, canvas).astype(int)
    # Other batch sizes sum in another order: a value on the edge may round the other way.
    assert np.abs(together - alone).max() <= 1


class Carried:
    """`CarriedPixels` that know a band on the left of every second frame."""

    def __init__(self, source, canvas):
        self.frames = np.random.default_rng(2).integers(0, 256, (len(source), canvas.height, canvas.width, 3), np.uint8)
        self.frames = canvas.paste(self.frames, source[:])
        self.masks = np.repeat(canvas.mask()[None], len(source), axis=0)
        self.masks[::2, :, 2:10] = 0

    def __getitem__(self, indices):
        return self.frames[list(indices)], self.masks[list(indices)]


def test_carried_pixels_are_known_and_come_back_as_they_are(folder, monkeypatch):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(5)
    monkeypatch.setattr(m3ddm, "CarriedPixels", Carried)
    outpainter = M3DDM(folder, propagate=True)
    seen = []
    sample = outpainter._denoiser.sample

    def watched(conditions, *args, **noise):
        seen.append(conditions.mask)
        return sample(conditions, *args, **noise)

    monkeypatch.setattr(outpainter._denoiser, "sample", watched)
    outpainted, carried = outpaint(outpainter, source, canvas), Carried(source, canvas)
    known = np.broadcast_to(carried.masks == 0, outpainted.shape)
    np.testing.assert_array_equal(outpainted[known], carried.frames[known])
    assert (outpainted != carried.frames)[~known].any()
    # Work canvas of 32x16, cells of 4 pixels: the band covers the second cell alone, of whole frames in even places.
    masks = np.asarray(seen[0])[0, ..., 0]
    assert not masks[0, :, 1].any() and masks[0, :, 0].all() and masks[1, :, :2].all()


def test_what_is_carried_needs_the_canvas_of_the_target(folder):
    with pytest.raises(ValueError, match="`propagate` needs canvas=target"):
        M3DDM(folder, preset="official", settings=SMALL, propagate=True)


def test_one_colour_and_nothing_to_generate_are_finite(outpainter):
    source = Frames(np.full((3, 16, 16, 3), 90, np.uint8))
    assert outpaint(outpainter, source, Canvas(16, 16, 16, 16, 0, 0)).shape == (3, 16, 16, 3)


def test_settings_that_are_missing_are_named(folder, tmp_path):
    (tmp_path / "model").symlink_to(folder)
    module_files = {path.name: path for path in folder.iterdir()}
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, path in module_files.items():
        (broken / name).symlink_to(path) if name != "pipeline.json" else (broken / name).write_text('{"sample": {}}')
    with pytest.raises(ValueError, match=r"pipeline\.json does not say 'diffusion'"):
        M3DDM(broken)


def test_a_folder_of_another_kind_is_named(folder):
    with pytest.raises(ValueError, match="autoencoder holds a model of kind patch_codec: one of kind m3ddm is needed"):
        M3DDM(folder / "autoencoder")


def test_windows_that_fill_the_devices_lie_on_them_in_equal_parts(folder, outpainter):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(11)
    two = M3DDM(folder, windows=2)
    assert two._devices.mesh.size == 2
    alone = outpaint(outpainter, source, canvas).astype(int)
    assert np.abs(outpaint(two, source, canvas) - alone).max() <= 1


# Less work than the preset's own numbers, all else as it is.
SMALL = {"lines": 32, "steps": 2, "global_frames": 2, "global_size": 24}


@pytest.fixture(scope="module")
def official(folder):
    return M3DDM(folder, preset="official", settings=SMALL)


@pytest.mark.parametrize("num_frames", [1, 17])
def test_the_official_preset_shows_every_frame_once(official, num_frames):
    canvas = Canvas.from_aspect(20, 16, 2.0)
    frames = outpaint(official, video(num_frames), canvas)
    assert frames.shape == (num_frames, canvas.height, canvas.width, 3)


def test_windows_in_sequence_show_what_was_made_last(official, monkeypatch):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(20)
    made = []
    sample = official._denoiser.sample

    def numbered(*args, **noise):
        made.append(np.full_like(sample(*args, **noise), len(made) / 4 - 0.5))
        return made[-1]

    monkeypatch.setattr(official._denoiser, "sample", numbered)
    frames = outpaint(official, source, canvas)
    # Two windows of 16, which share frame 15: -0.5 and -0.25 of the codec's scale 2.
    shade = frames[:, 0, 0, 0]
    assert len(made) == 2
    np.testing.assert_array_equal(shade, [int((-0.5 / 2 + 1) * 127.5)] * 15 + [int((-0.25 / 2 + 1) * 127.5)] * 5)


@pytest.mark.parametrize(
    "name", ["windows", *(pytest.param(name, marks=pytest.mark.slow) for name in ("canvas", "solver"))]
)
def test_every_setting_of_the_preset_may_be_taken_alone(folder, name):
    """Each difference from the official code is a setting of its own."""
    value = {**PRESETS["official"], **SMALL}[name]
    outpainter = M3DDM(folder, settings={"strides": [1], "noise_scale": 1.0, name: value})
    assert outpaint(outpainter, video(2), Canvas.from_aspect(20, 16, 2.0)).shape[0] == 2


def test_experiments_name_the_settings_that_there_are():
    assert M3ddmSettings.make(common.sample().to_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "heun"}, "'heun'.*ddim"),
        ({"seam": "soft"}, "seam is 'soft': one of matched, hard"),
        ({"steps": 0}, "steps is 0: a whole number from 1 to 10000"),
        ({"noise_scale": "much"}, "noise_scale is 'much': a number"),
        ({"speed": 3}, "no setting speed: lines"),
    ],
)
def test_settings_that_do_not_fit_are_named(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        M3DDM(folder, settings=settings)


def test_unknown_presets_and_dtypes_are_named(folder):
    with pytest.raises(ValueError, match="preset 'offical' is unknown: one of official"):
        M3DDM(folder, preset="offical")
    with pytest.raises(ValueError, match="'float8': float32 and bfloat16"):
        M3DDM(folder, dtype="float8")


@pytest.mark.slow
def test_bfloat16_differs_little(folder, outpainter):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(3)
    half = outpaint(M3DDM(folder, dtype="bfloat16"), source, canvas).astype(int)
    assert np.abs(half - outpaint(outpainter, source, canvas)).mean() < 3
