import importlib
import pathlib

import jax
import pytest

from configs import globalpaint_interp, globalpaint_key, m3ddm, m3ddm_tiny
from m3ddm_jax.models import registry
from m3ddm_jax.recipes import RECIPES, base
from m3ddm_jax.recipes.diffusion import BUILT
from m3ddm_jax.recipes.diffusion import CONFIGS as WHOLE

FILES = sorted(path for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "common")
CONFIGS = {path.stem: importlib.import_module(f"configs.{path.stem}").get_config() for path in FILES}
DIFFUSION = [name for name, config in CONFIGS.items() if config.recipe == "diffusion"]
PARAMETERS = {"m3ddm": 1_299_279_320, "globalpaint_key": 1_316_254_820}


def test_the_full_size_recipe_is_the_published_one_and_the_miniature_is_the_same():
    full, tiny = m3ddm.get_config(), m3ddm_tiny.get_config()
    data = full.data
    assert (data.num_frames, data.buckets, data.global_frames, data.global_size) == (16, ((256, 256),), 16, 256)
    masks = data.masks
    assert (masks.four, masks.single, masks.horizontal, masks.vertical) == (0.2, 0.1, 0.175, 0.175)
    assert (masks.random, masks.all, masks.objects) == (0.1, 0.25, 0.0)
    assert (masks.all_masked, masks.ends_known, masks.random_known) == (0.3, 0.35, 0.35)
    assert (masks.min_ratio, masks.max_ratio, masks.per_frame, masks.multiple) == (0.15, 0.75, False, 1)
    # Of the local condition, the masks that hide everything are the dropout.
    assert (full.train.drop_local, full.train.drop_global) == (0.0, 0.1)
    assert full.diffusion.schedule == "scaled_linear" and full.diffusion.prediction == "epsilon"
    assert tiny.diffusion == full.diffusion and tiny.data.masks == masks and tiny.autoencoder == full.autoencoder
    assert (tiny.train.drop_local, tiny.train.drop_global) == (0.0, 0.1)


def test_globalpaints_stages_differ_in_what_is_known():
    key, between = globalpaint_key.get_config(), globalpaint_interp.get_config()
    assert (key.stage, between.stage) == ("key_frames", "interpolation")
    assert (key.data.global_fit, key.data.global_size) == ("pad", 224)
    assert (key.train.learning_rate, key.train.pretrained_rate, key.train.frozen_steps) == (1e-4, 0.1, 50_000)
    masks = between.data.masks
    assert (masks.both_known, masks.random_known, masks.all_masked, masks.ends_known) == (0.9, 0.1, 0.0, 0.0)
    assert (between.train.learning_rate, between.train.frozen_steps) == (5e-5, 0)
    for section in ("model", "autoencoder", "image_encoder", "diffusion", "sample"):
        assert between[section] == key[section]


def test_every_config_has_a_recipe():
    assert {config.recipe for config in CONFIGS.values()} <= RECIPES.keys() and "m3ddm" in DIFFUSION


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_config_of_a_diffusion_model_is_whole_and_its_sizes_fit(name):
    config = CONFIGS[name]
    base.check_config(config, WHOLE[config.model.kind](), built=BUILT)
    model = base.build_model(config.model)
    patch = config.autoencoder.get("patch_size", 8)
    multiple = patch * 2 ** (len(model.block_out_channels) - 1)
    assert all(side % multiple == 0 for bucket in config.data.buckets for side in bucket)
    widths = model.block_out_channels
    heads = model.num_heads if isinstance(model.num_heads, tuple) else (model.num_heads,) * len(widths)
    assert all(width % model.norm_num_groups == 0 for width in widths)
    assert all(width % number == 0 for width, number in zip(widths, heads, strict=True))
    assert config.sample.num_frames == config.data.num_frames
    shapes = registry.abstract_variables(model)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == PARAMETERS.get(name, count)
