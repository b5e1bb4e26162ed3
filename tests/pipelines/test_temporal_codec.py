"""A codec that joins four frames in a latent one: windows, masks, guides, the cache and training work with it."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from configs import common
from m3ddm_jax.geometry import Canvas
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import latent_frames, pixel_mask, reduce_mask
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.pipelines.m3ddm import M3DDM
from m3ddm_jax.pipelines.window_schedule import fill_windows, latent_guides, plan_windows
from m3ddm_jax.recipes.diffusion import DiffusionRecipe
from m3ddm_jax.training.encoding import decode_latents, encode_batch, make_conditions, to_unit_range
from m3ddm_jax.types import Codec
from m3ddm_jax.weights import save_model
from tests.pipelines.test_m3ddm import SETTINGS, Frames

FRAMES = 5


class VideoCodec(nn.Module):
    """Patches of pixels and of four frames become channels, exactly; the first latent frame repeats the first frame."""

    patch_size: int = 8
    scale: float = 2.0
    temporal_factor: ClassVar[int] = 4

    @property
    def spatial_factor(self):
        return self.patch_size

    @property
    def latent_channels(self):
        return 4 * 3 * self.patch_size**2

    def encode(self, x):
        x = jnp.concatenate([jnp.repeat(x[:, :1], 3, axis=1), x], axis=1)
        mean = rearrange(x, "n (t k) (h p) (w q) c -> n t h w (k p q c)", k=4, p=self.patch_size, q=self.patch_size)
        return mean, jnp.full_like(mean, -jnp.inf)

    def decode(self, z):
        p = self.patch_size
        return rearrange(z, "n t h w (k p q c) -> n (t k) (h p) (w q) c", k=4, p=p, q=p, c=3)[:, 3:]

    def __call__(self, x):
        return self.decode(self.encode(x)[0])


@pytest.fixture(autouse=True, scope="module")
def video_codec():
    with pytest.MonkeyPatch.context() as patch:
        example = dataclasses.replace(
            registry._KINDS["patch_codec"],
            module=VideoCodec,
            example=lambda module: ((jnp.zeros((1, 5, 8, 8, 3)),), {}),
        )
        patch.setitem(registry._KINDS, "video_codec", example)
        yield


def video(num_frames, seed=0):
    return Frames(np.random.default_rng(seed).integers(0, 256, (num_frames, 16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def outpainter(tmp_path_factory):
    sizes = {"block_out_channels": (8,), "attention_levels": (False,), "cross_attention_dim": 8}
    small = {"layers_per_block": 1, "num_heads": 2, "norm_num_groups": 4, "frame_embedding_dim": 8}
    module = M3DDMUNet(latent_channels=192, global_widths=(8,) * 5, **sizes, **small)
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
    variables["batch_stats"] = jax.tree.map(np.ones_like, variables["batch_stats"])
    folder = tmp_path_factory.mktemp("models") / "temporal"
    sample = SETTINGS["sample"] | {"num_frames": FRAMES, "strides": [4, 1], "steps": 1, "guidance_local": 1.0}
    settings = SETTINGS | {"sample": sample}
    save_model(folder, module, variables, settings=settings, autoencoder=(VideoCodec(4), {}))
    return M3DDM(folder)


def test_it_follows_the_protocol():
    assert isinstance(VideoCodec(), Codec) and "video_codec" in registry.kinds(Codec)
    assert [latent_frames(VideoCodec(), count) for count in (1, 5, 17)] == [1, 2, 5]
    with pytest.raises(ValueError, match="clips have 16 frames: this codec takes 4 n \\+ 1, such as 17"):
        latent_frames(VideoCodec(), 16)


def test_a_latent_frame_is_unknown_where_any_of_its_frames_is():
    mask = np.zeros((9, 8, 8, 1), np.uint8)
    mask[2, 0, 0] = 1
    cells = np.asarray(reduce_mask(mask, 4, temporal_factor=4))
    assert cells.shape == (3, 2, 2, 1) and cells[:, 0, 0, 0].tolist() == [0, 1, 0] and cells.sum() == 1
    pixels = np.asarray(pixel_mask(VideoCodec(4), cells[None]))[0]
    assert pixels.shape == mask.shape and pixels[:, 0, 0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0]


def test_windows_are_filled_and_their_guides_counted_in_latent_frames():
    levels = fill_windows(plan_windows(7, 9, (1,)), 4)
    ((((window,),),)) = levels
    assert window.frames == (0, 1, 2, 3, 4, 5, 6, 6, 6) and window.writes == (True,) * 7 + (False,) * 2
    guided = dataclasses.replace(window, guides=(True,) + (True,) * 4 + (True, False, False, False))
    assert latent_guides(guided, 4) == (True, True, False)
    assert latent_guides(guided, 1) == guided.guides
    assert fill_windows(levels, 1) == levels


@pytest.mark.parametrize("num_frames", [1, 7, 12])
def test_every_frame_comes_once_at_the_size_of_the_canvas(outpainter, num_frames):
    canvas, source = Canvas.from_aspect(16, 16, 2.0), video(num_frames)
    frames = np.concatenate(list(outpainter(source, canvas, jax.random.key(0))))
    assert frames.shape == (num_frames, 16, 32, 3)
    again = np.concatenate(list(outpainter(source, canvas, jax.random.key(0))))
    np.testing.assert_array_equal(again, frames)


def test_guides_are_encoded_again_from_their_pixels(outpainter, monkeypatch):
    canvas, source = Canvas.from_aspect(16, 16, 2.0), video(12)
    seen, sample = [], outpainter._denoiser.sample

    def watched(conditions, *args, **noise):
        made = sample(conditions, *args, **noise)
        seen.append((conditions, np.asarray(made)[0]))
        return made

    monkeypatch.setattr(outpainter._denoiser, "sample", watched)
    list(outpainter(source, canvas, jax.random.key(0)))
    # Frames 0, 4, 8 and 11 first; then windows from 0, 4 and 7, the first two of which begin with a guide.
    assert [np.asarray(conditions.guides)[0].tolist() for conditions, _ in seen[1:]] == [
        [True, False],
        [True, False],
        [False, False],
    ]
    codec, (_, coarse), (conditions, _) = VideoCodec(4), seen[0], seen[1]
    pixels = np.rint(np.clip((codec.decode(coarse[None] / codec.scale)[0] + 1) * 127.5, 0, 255))
    expected = codec.scale * codec.encode(pixels[None, :1] / 127.5 - 1)[0][0, 0]
    np.testing.assert_allclose(conditions.masked_latents[0, 0], expected, atol=1e-5)
    assert not np.asarray(conditions.mask)[0, 0].any() and np.asarray(conditions.mask)[0, 1].any()


def test_a_number_of_frames_that_does_not_fit_is_named(outpainter, monkeypatch):
    settings = dataclasses.replace(outpainter._settings, num_frames=6)
    monkeypatch.setattr(outpainter, "_settings", settings)
    with pytest.raises(ValueError, match="clips have 6 frames"):
        outpainter(video(3), Canvas.from_aspect(16, 16, 2.0), jax.random.key(0))


def test_the_recipe_encodes_clips(video_codec):
    config = common.base()
    config.autoencoder = {"kind": "video_codec", "patch_size": 8, "scale": 2.0}
    config.model.update(latent_channels=768, block_out_channels=(16,), attention_levels=(False,), norm_num_groups=4)
    config.data.update(num_frames=9, buckets=((16, 16),), global_frames=2, global_size=48, num_threads=1)
    recipe = DiffusionRecipe(config)
    rng = np.random.default_rng(0)
    batch = {
        "video": rng.integers(0, 256, (2, 9, 16, 16, 3), np.uint8),
        "mask": np.zeros((2, 9, 16, 16, 1), np.uint8),
        "global_frames": rng.integers(0, 256, (2, 2, 48, 48, 3), np.uint8),
        "fps": np.ones(2, np.float32),
    }
    encoded = encode_batch(recipe.encoders, recipe.frozen, batch)
    shapes = {name: value.shape for name, value in encoded.items()}
    assert shapes["latents_mean"] == shapes["masked_mean"] == shapes["black_mean"] == (2, 3, 2, 2, 768)
    assert shapes["mask"] == (2, 3, 2, 2, 1) and shapes["global_mean"] == (2, 2, 6, 6, 768)
    seen = make_conditions(encoded, drop_local=np.array([True, False]))
    clips = decode_latents(recipe.encoders.autoencoder, {}, seen.latents)
    np.testing.assert_allclose(clips, to_unit_range(batch["video"]), atol=1e-5)
    assert (seen.mask[0] == 1).all() and not seen.mask[1].any()
    config.data.num_frames = 8
    with pytest.raises(ValueError, match="clips have 8 frames"):
        DiffusionRecipe(config)
