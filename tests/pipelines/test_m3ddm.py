import jax
import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.pipelines.hierarchy import Window
from m3ddm_jax.pipelines.m3ddm import M3DDM, _LatentSpool, _WorkCanvas
from m3ddm_jax.weights import save_model

pytestmark = pytest.mark.usefixtures("quick_compiles")

SETTINGS = {
    "diffusion": {
        "schedule": "cosine",
        "zero_terminal_snr": True,
        "shift": 1.0,
        "prediction": "x0",
        "unknown": "filled",
    },
    "sample": {
        "lines": 16,
        "num_frames": 4,
        "strides": [3, 1],
        "steps": 2,
        "solver": "dpm++",
        "guidance_local": 2.0,
        "guidance_global": 1.0,
        "guidance_interval": [0.0, 1.0],
        "strength": 1.0,
        "noise_scale": 1.0,
        "clip": 2.0,
        "global_frames": 3,
        "global_size": 24,
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


def video(num_frames, height=20, width=16):
    return Frames(np.random.default_rng(1).integers(0, 256, (num_frames, height, width, 3), np.uint8))


def outpaint(outpainter, source, canvas, seed=0):
    return np.concatenate(list(outpainter(source, canvas, jax.random.key(seed))))


@pytest.mark.parametrize("num_frames", [1, 3, 4, 11, 23])
def test_every_frame_comes_once_at_the_size_of_the_canvas(folder, num_frames):
    canvas = Canvas.from_aspect(20, 16, 2.0)
    frames = outpaint(M3DDM(folder), video(num_frames), canvas)
    assert frames.shape == (num_frames, canvas.height, canvas.width, 3)
    assert frames.dtype == np.uint8


def test_a_seed_repeats_and_another_differs(folder):
    canvas, source, outpainter = Canvas.from_aspect(20, 16, 2.0), video(5), M3DDM(folder)
    first = outpaint(outpainter, source, canvas)
    np.testing.assert_array_equal(outpaint(outpainter, source, canvas), first)
    assert (outpaint(outpainter, source, canvas, seed=1) != first).any()


def test_windows_sampled_together_equal_windows_sampled_alone(folder):
    canvas, source = Canvas.from_aspect(20, 16, 2.0), video(11)
    alone = outpaint(M3DDM(folder), source, canvas).astype(int)
    together = outpaint(M3DDM(folder, windows_per_batch=3), source, canvas).astype(int)
    # Other batch sizes sum in another order: a value on the edge may round the other way.
    assert np.abs(together - alone).max() <= 1


def test_one_colour_and_nothing_to_generate_are_finite(folder):
    source = Frames(np.full((3, 16, 16, 3), 90, np.uint8))
    assert outpaint(M3DDM(folder), source, Canvas(16, 16, 16, 16, 0, 0)).shape == (3, 16, 16, 3)


def test_settings_that_are_missing_are_named(folder, tmp_path):
    (tmp_path / "model").symlink_to(folder)
    module_files = {path.name: path for path in folder.iterdir()}
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, path in module_files.items():
        (broken / name).symlink_to(path) if name != "pipeline.json" else (broken / name).write_text('{"sample": {}}')
    with pytest.raises(ValueError, match=r"pipeline\.json does not say 'diffusion'"):
        M3DDM(broken)


def test_work_canvas_is_a_multiple_near_its_lines_and_calls_nothing_unknown_known():
    canvas = Canvas.from_pad(50, 40, 31, 4, 31, 2)
    work = _WorkCanvas(canvas, lines=32, multiple=8)
    assert (work.height, work.width) == (32, 56)
    rows = np.arange(work.height + 1) * canvas.height / work.height
    columns = np.arange(work.width + 1) * canvas.width / work.width
    for row in range(work.height):
        for column in range(work.width):
            inside = canvas.top <= rows[row] + 1e-6 and rows[row + 1] - 1e-6 <= canvas.top + canvas.source_height
            inside &= canvas.left <= columns[column] + 1e-6
            inside &= columns[column + 1] - 1e-6 <= canvas.left + canvas.source_width
            assert work.mask[row, column, 0] == (not inside)


def test_work_canvas_of_a_portrait_is_a_portrait():
    work = _WorkCanvas(Canvas.from_aspect(64, 64, 9 / 16), lines=32, multiple=8)
    assert (work.height, work.width) == (56, 32)


def test_spool_gives_frames_out_once_in_order_and_uses_places_again():
    with _LatentSpool(window=2) as spool:
        for start in range(0, 40, 2):
            frames = (start, start + 1)
            latents = np.stack([np.full((2, 2, 3), frame, np.float32) for frame in frames])
            spool.write(Window(1, frames, (False, False), (True, True)), latents)
            assert spool.take_finished() == (start, start + 2)
            assert (spool.read(start) == start).all()
        assert spool._file.seek(0, 2) <= 8 * 4 * 12
