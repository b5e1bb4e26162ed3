import importlib
import pathlib

import jax
import pytest

from configs import m3ddm, m3ddm_tiny
from m3ddm_jax import train
from m3ddm_jax.models import registry

NAMES = sorted(
    path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "common"
)
PARAMETERS = {"m3ddm": 1_299_279_320}


def test_the_full_size_recipe_is_the_published_one_and_the_miniature_is_the_same():
    full, tiny = m3ddm.get_config(), m3ddm_tiny.get_config()
    data = full.data
    assert (data.num_frames, data.buckets, data.global_frames, data.global_size) == (16, ((256, 256),), 16, 256)
    masks = data.masks
    assert (masks.four, masks.single, masks.double, masks.random, masks.all) == (0.2, 0.1, 0.35, 0.1, 0.25)
    assert (masks.all_masked, masks.ends_known, masks.random_known) == (0.3, 0.35, 0.35)
    assert (masks.min_ratio, masks.max_ratio, masks.per_frame) == (0.15, 0.75, False)
    # Of the local condition, the masks that hide everything are the dropout.
    assert (full.train.drop_local, full.train.drop_global) == (0.0, 0.1)
    assert full.diffusion.schedule == "scaled_linear" and full.diffusion.prediction == "epsilon"
    assert tiny.diffusion == full.diffusion and tiny.data.masks == masks and tiny.autoencoder == full.autoencoder
    assert (tiny.train.drop_local, tiny.train.drop_global) == (0.0, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_whole_and_its_sizes_fit(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    train.check_config(config)
    model = train.build_model(config.model)
    patch = config.autoencoder.get("patch_size", 8)
    multiple = patch * 2 ** (len(model.block_out_channels) - 1)
    assert all(side % multiple == 0 for bucket in config.data.buckets for side in bucket)
    assert all(width % config.model.norm_num_groups == 0 for width in model.block_out_channels)
    assert all(width % config.model.num_heads == 0 for width in model.block_out_channels)
    assert config.sample.num_frames == config.data.num_frames
    shapes = registry.abstract_variables(model)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == PARAMETERS.get(name, count)
