import dataclasses
import importlib
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from configs import common, globalpaint_interp, globalpaint_key, m3ddm, m3ddm_tiny
from data.masks import MaskSampler
from m3ddm_jax.losses.outpainting import OutpaintingWeights
from m3ddm_jax.models import registry
from m3ddm_jax.recipes import RECIPES, base
from m3ddm_jax.recipes.diffusion import BUILT
from m3ddm_jax.training.flow_step import FlowWeights
from m3ddm_jax.training.gan_step import AdversarialSettings
from m3ddm_jax.training.optim import AdamSettings

MOVED = ("tiny",)
PATHS = (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
FILES = sorted(path for path in PATHS if path.stem not in ("common", *MOVED))
WHOLE = {"globalpaint": common.globalpaint, "m3ddm": common.base}
CONFIGS = {path.stem: importlib.import_module(f"configs.{path.stem}").get_config() for path in FILES}
DIFFUSION = [name for name, config in CONFIGS.items() if config.recipe == "diffusion"]
PARAMETERS = {"m3ddm": 1_299_279_320, "globalpaint_key": 1_316_254_820}


def test_the_full_size_recipe_is_the_published_one_and_the_miniature_is_the_same():
    full, tiny = m3ddm.get_config(), m3ddm_tiny.get_config("autoencoder")
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


@pytest.mark.parametrize("name", MOVED)
def test_an_old_path_says_where_the_config_is(name):
    with pytest.raises(ValueError, match=f"configs/{name}.py is configs/m3ddm_embedded.py now"):
        importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_config_states_what_holds_already(path, monkeypatch):
    """An update to the value that is there is a default that stands twice."""
    twice, update = [], ConfigDict.update

    def watched(self, *others, **changes):
        given = {**(dict(others[0]) if others else {}), **changes}
        twice.extend(f"{name}={value!r}" for name, value in given.items() if name in self and same(self[name], value))
        update(self, *others, **changes)

    monkeypatch.setattr(ConfigDict, "update", watched)
    importlib.import_module(f"configs.{path.stem}").get_config()
    assert not twice


def same(found, value):
    return type(found) is type(value) and not isinstance(value, ConfigDict) and found == value


def test_sections_have_the_defaults_of_the_dataclasses_that_they_fill():
    adversarial, flow = common.adversarial(), common.flow()
    filled = [
        (AdversarialSettings, adversarial.adversarial),
        (OutpaintingWeights, adversarial.adversarial.weights),
        (FlowWeights, flow.flow.weights),
        (MaskSampler, common.data().masks),
        (AdamSettings, common.base().train.optimizer),
    ]
    for kind, section in filled:
        fields = [field for field in dataclasses.fields(kind) if field.name != "weights"]
        missing = {field.name for field in fields if field.default is dataclasses.MISSING}
        assert missing <= {"ema_decay"} and missing.isdisjoint(section.keys())
        assert {field.name: section[field.name] for field in fields if field.name not in missing} == {
            field.name: field.default for field in fields if field.name not in missing
        }
    for config in (common.base(), common.globalpaint(), adversarial, flow, common.style()):
        described = registry.defaults(config.model.kind)
        assert described.keys() == set(config.model) - {"kind"}
    text = pathlib.Path(common.__file__).read_text()
    for name in ("clip_weight", "ternary", "all_masked=0.3", "block_out_channels=(320", "num_heads=8"):
        assert name not in text, f"{name} is a default of a dataclass"


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
