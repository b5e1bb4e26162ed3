import importlib
import pathlib

import jax
import pytest

from m3ddm_jax import train
from m3ddm_jax.models import registry

NAMES = sorted(
    path.stem for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py") if path.stem != "common"
)
PARAMETERS = {"m3ddm": 1_299_279_320}


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
