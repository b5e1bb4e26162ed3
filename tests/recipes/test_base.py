import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common, m3ddm_tiny
from data import latents
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.recipes import RECIPES, base, make_recipe
from m3ddm_jax.weights import load_settings

EXPECTED = ConfigDict(
    {
        "recipe": "some",
        "model": {"kind": "m3ddm"},
        "train": {"seed": 0, "export_dtype": "float32", "spike_patience": 1, "evaluate_metrics": ()},
        "mesh": {"data": 1},
    }
)


@pytest.fixture(scope="module")
def codec():
    """A small autoencoder and random numbers as its weights."""
    module = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    return module, jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.__delitem__("mesh"), "the config has no section mesh"),
        (lambda c: c.train.update(sed=1), "section train lacks nothing and has sed that is not known"),
        (lambda c: c.train.__delitem__("seed"), "section train lacks seed and has nothing that is not known"),
        (lambda c: c.train.update(export_dtype="int8"), "export_dtype 'int8' is unknown: float32 and float16"),
        (lambda c: c.train.update(spike_patience=0), "spike_patience is 0: 1 or more"),
    ],
)
def test_sections_and_fields_are_those_that_a_recipe_reads(change, message):
    config = EXPECTED.copy_and_resolve_references()
    config.model.update(width=3)  # for the builder of networks to judge
    base.check_config(config, EXPECTED, built=("model",))
    change(config)
    with pytest.raises(ValueError, match=message):
        base.check_config(config, EXPECTED, built=("model",))


def test_a_recipe_is_found_by_its_name():
    config = m3ddm_tiny.get_config()
    assert type(make_recipe(config)) is RECIPES["diffusion"]
    config.recipe = "magic"
    with pytest.raises(ValueError, match="recipe 'magic' is unknown: one of .*diffusion.* is accepted"):
        make_recipe(config)


def test_a_model_is_built_with_or_without_a_dtype():
    assert base.build_model(ConfigDict({"kind": "patch_codec", "patch_size": 4})).spatial_factor == 4
    section = ConfigDict({"kind": "autoencoder", "block_out_channels": (4, 8), "dtype": "bfloat16"})
    assert base.build_model(section).dtype == jnp.bfloat16
    section.dtype = "float7"
    with pytest.raises(ValueError, match="dtype 'float7' is unknown"):
        base.build_model(section)


def test_an_exported_model_is_loaded_again_and_no_other(codec, tmp_path):
    module, variables = codec
    on_mesh = jax.device_put(variables, make_mesh(data=2, fsdp=4).devices.flat[0])
    base.export_model(tmp_path / "model", module, on_mesh, dtype="float16", settings={"a": 1})
    found = base.load_variables(str(tmp_path / "model"), module)
    expected = jax.tree.map(lambda leaf: leaf.astype(np.float16), variables["params"])
    jax.tree.map(np.testing.assert_array_equal, found["params"], expected)
    assert load_settings(tmp_path / "model") == {"a": 1}
    other = registry.build("autoencoder", block_out_channels=(4, 8), layers_per_block=2, norm_num_groups=2)
    with pytest.raises(ValueError, match="does not fit the config: layers_per_block is 1 there and 2 here"):
        base.load_variables(str(tmp_path / "model"), other)
    with pytest.raises(ValueError, match="nowhere is not a model folder"):
        base.load_variables("nowhere", module)


def test_clips_are_those_of_the_data_section():
    config = m3ddm_tiny.get_config()
    batch = next(iter(base.make_clips(config, 3)))
    assert batch["video"].shape == (8, 2, 32, 32, 3) and batch["global_frames"].shape == (8, 2, 48, 48, 3)
    again, other = (next(iter(base.make_clips(config, seed)))["video"] for seed in (3, 4))
    np.testing.assert_array_equal(batch["video"], again)
    assert np.any(batch["video"] != other)
    assert base.list_sources(config) == [("synthetic", "", 1.0, "train")]
    assert set(base.clip_settings(config)) == set(common.data()) - {"validation"}


def data_config(sources, validation=()):
    return ConfigDict({"data": {"sources": tuple(sources), "validation": tuple(validation)}})


def named(kind, path="", **more):
    return {"kind": kind, "path": str(path), "weight": 1.0, **more}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three files with names of videos."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        (folder / f"{number}.mp4").touch()
    return folder


def test_what_sources_hold_out_is_validated_on(videos, tmp_path):
    (tmp_path / "one.mp4").touch()
    config = data_config(
        [named("videos", videos), named("synthetic"), named("videos", tmp_path), named("latents", "z")]
    )
    validation, lacking = base.list_validation(config)
    assert validation == [("videos", str(videos), 1.0, "validation"), ("synthetic", "", 1.0, "validation")]
    assert lacking == [
        f"{tmp_path} holds one video: none is of the split validation",
        "z has latents of training clips",
    ]
    assert base.list_validation(data_config([named("synthetic", split="all")])) == ([], [])


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        (lambda v: named("videos", v), lambda v: named("videos", v, split="train")),
        (lambda v: named("videos", v), lambda v: named("videos", v, split="all")),
        (lambda v: named("videos", v, split="all"), lambda v: named("videos", v, split="validation")),
        (lambda v: named("videos", v.parent), lambda v: named("videos", v, split="validation")),
        (lambda v: named("videos", v), lambda v: named("videos", v / ".." / v.name, split="train")),
        (lambda v: named("synthetic"), lambda v: named("synthetic", split="all")),
        (lambda v: named("latents", v.parent / "encoded"), lambda v: named("videos", v, split="train")),
    ],
)
def test_sources_that_share_videos_are_refused(videos, training, validation):
    latents.write_facts(videos.parent / "encoded", {"sources": [["videos", str(videos), 1.0]]})
    config = data_config([training(videos)], [validation(videos)])
    try:
        with pytest.raises(ValueError, match="data.validation and data.sources share videos: "):
            base.list_validation(config)
    finally:
        shutil.rmtree(videos.parent / "encoded")


def test_named_validation_sources_have_a_split_that_is_there(videos, tmp_path):
    (tmp_path / "one.mp4").touch()
    found, lacking = base.list_validation(
        data_config([named("videos", videos)], [named("videos", tmp_path, split="all")])
    )
    assert [spec.path for spec in found] == [str(tmp_path)] and not lacking
    with pytest.raises(ValueError, match="without a split: one of train, validation, all"):
        base.list_validation(data_config([named("videos", videos)], [named("videos", tmp_path)]))
    with pytest.raises(ValueError, match="none is of the split validation"):
        base.list_validation(data_config([named("synthetic")], [named("videos", tmp_path, split="validation")]))


def test_frames_of_any_size_become_bytes():
    found = base.to_uint8(np.array([-3.0, -1.0, 0.0, 1.0, 3.0], np.float32))
    assert found.dtype == jnp.uint8 and found.tolist() == [0, 0, 127, 255, 255]
