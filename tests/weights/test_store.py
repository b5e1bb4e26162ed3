import json
import os
import shutil
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m3ddm_jax.files.writing import place
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.weights import load_autoencoder, load_image_encoder, load_model, load_settings, memory, save_model
from m3ddm_jax.weights.store import check_names, check_replaceable


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    module = M3DDMUNet(
        latent_channels=12,
        block_out_channels=(8,),
        attention_levels=(False,),
        layers_per_block=1,
        num_heads=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        frame_embedding_dim=8,
    )
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(module)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, module, variables, settings={"sample": {"steps": 3}}, autoencoder=(PatchCodec(2), {}))
    return folder, module, variables


def test_a_folder_comes_back_bit_for_bit(saved):
    folder, module, variables = saved
    loaded_module, loaded = load_model(folder)
    assert loaded_module == module
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert load_autoencoder(folder) == (PatchCodec(2), {})
    assert load_settings(folder) == {"sample": {"steps": 3}}


def test_half_the_size_and_float32_when_loaded(saved, tmp_path):
    folder, module, variables = saved
    halves = jax.tree.map(lambda leaf: leaf.astype(np.float16), variables)
    save_model(tmp_path / "half", module, halves)
    size, whole = ((path / "weights.safetensors").stat().st_size for path in (tmp_path / "half", folder))
    assert size < 0.7 * whole
    _, loaded = load_model(tmp_path / "half")
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), loaded, variables)


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(saved):
    folder, module, variables = saved
    save_model(folder.parent / "again", module, variables, settings={})
    save_model(folder.parent / "again", module, variables)
    assert sorted(p.name for p in (folder.parent / "again").iterdir()) == ["config.json", "weights.safetensors"]
    assert not list(folder.parent.glob(".*"))


def test_what_is_no_part_of_the_model_stays(saved, tmp_path):
    folder, module, variables = saved
    save_model(tmp_path / "a", module, variables, settings={}, autoencoder=(PatchCodec(2), {}))
    (tmp_path / "a/README.md").write_text("mine")
    save_model(tmp_path / "a", PatchCodec(8), {})
    assert load_model(tmp_path / "a") == (PatchCodec(8), {})
    assert load_autoencoder(tmp_path / "a") == (PatchCodec(2), {})
    assert (tmp_path / "a/README.md").read_text() == "mine"
    assert not (tmp_path / "a/pipeline.json").exists()
    save_model(tmp_path / "a", module, variables, autoencoder=(PatchCodec(4), {}), image_encoder=(PatchCodec(7), {}))
    assert load_autoencoder(tmp_path / "a") == (PatchCodec(4), {})
    assert load_image_encoder(tmp_path / "a") == (PatchCodec(7), {})


def test_nothing_is_left_of_what_cannot_be_written(saved, tmp_path):
    folder, module, variables = saved
    with pytest.raises(TypeError):
        save_model(tmp_path / "a", module, variables, settings={"not plain": object()})
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(saved, tmp_path):
    folder, module, variables = saved
    for fine in (tmp_path / "new", tmp_path, folder):
        check_replaceable(fine, "m3ddm")
    save_model(tmp_path / "a/autoencoder", PatchCodec(2), {})
    save_model(tmp_path / "a/image_encoder", PatchCodec(2), {})
    check_replaceable(tmp_path / "a", "m3ddm")
    with pytest.raises(ValueError, match="a model folder of kind 'm3ddm'"):
        check_replaceable(folder, "patch_codec")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ValueError, match="a folder of other files"):
        check_replaceable(tmp_path, "m3ddm")
    with pytest.raises(ValueError, match="is a file"):
        check_replaceable(tmp_path / "notes", "m3ddm")


def test_weights_are_mapped_and_memory_is_asked_first(saved, monkeypatch):
    folder, module, variables = saved
    kernel = load_model(folder)[1]["params"]["conv_in"]["kernel"]
    assert not kernel.flags.owndata and not kernel.flags.writeable
    needed = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables))
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    load_model(folder)
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with pytest.raises(ValueError, match=r"weights of .*tiny need 0\.00 GB of memory, 0\.00 GB are free"):
        load_model(folder)


def test_a_missing_part_names_the_command(saved, tmp_path):
    folder, module, variables = saved
    save_model(tmp_path / "a", module, variables)
    with pytest.raises(ValueError, match=r"convert sd-vae SOURCE .*a/autoencoder`"):
        load_autoencoder(tmp_path / "a")
    with pytest.raises(ValueError, match=r"convert openclip SOURCE .*a/image_encoder`"):
        load_image_encoder(tmp_path / "a")
    for load in (load_autoencoder, load_image_encoder):
        with pytest.raises(ValueError, match="no such folder"):
            load(tmp_path / "nothing")


def test_of_another_networks_names_the_first_are_listed():
    expected = {f"a{number}": (2,) for number in range(30)}
    check_names("it", expected, expected)
    with pytest.raises(ValueError, match=r"^it does not fit the model: 16 of 30 weights fit; missing a0 .*missing a9 "):
        check_names("it", {name: expected[name] for name in list(expected)[14:]}, expected)
    found = {name: expected[name] for name in list(expected)[16:]} | {f"b{number}": (3,) for number in range(9)}
    with pytest.raises(ValueError, match=r"^it is another network's: 14 of 30 weights fit; .*surplus b4 .*15 more$"):
        check_names("it", found, expected)


def broken_copy(saved, tmp_path, edit):
    folder, module, variables = saved
    save_model(tmp_path / "broken", module, variables)
    weights = load_file(tmp_path / "broken/weights.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "broken/weights.safetensors")
    return tmp_path / "broken"


def test_every_wrong_weight_is_listed(saved, tmp_path):
    def edit(weights):
        weights.pop("params.conv_in.bias")
        weights["params.extra"] = np.zeros(3, np.float32)
        weights["params.conv_norm_out.bias"] = np.zeros(5, np.float32)

    with pytest.raises(ValueError) as error:
        load_model(broken_copy(saved, tmp_path, edit))
    message = str(error.value)
    assert "missing params.conv_in.bias [8]" in message
    assert "surplus params.extra [3]" in message
    assert "params.conv_norm_out.bias is [5], expected [8]" in message
    assert "\n" not in message


def test_broken_folders_are_one_clear_line(saved, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "patch_codec"}))
    with pytest.raises(ValueError, match=r"no weights\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(tmp_path)


def damaged(saved, tmp_path, change):
    """A copy of the folder whose config.json `change` has changed."""
    shutil.copytree(saved[0], tmp_path / "damaged")
    path = tmp_path / "damaged" / "config.json"
    path.write_text(change(path.read_text()))
    return tmp_path / "damaged"


@pytest.mark.parametrize(
    "field, value",
    [
        ("num_heads", 0),
        ("num_heads", -2),
        ("num_heads", 2.5),
        ("num_heads", True),
        ("num_heads", "2"),
        ("num_heads", None),
        ("num_heads", 3),
        ("norm_num_groups", 5),
        ("block_out_channels", []),
        ("block_out_channels", [-8]),
        ("block_out_channels", 8),
        ("block_out_channels", [[8]]),
        ("block_out_channels", [8] * 100),
        ("attention_levels", [1]),
        ("layers_per_block", 10**6),
        ("layers_per_block", 10**30),
        ("kind", []),
        ("kind", {}),
        ("kind", None),
        ("latent_channels", 1 << 20),
    ],
)
def test_bad_hyper_parameters_are_one_line_at_once(saved, tmp_path, field, value):
    folder = damaged(saved, tmp_path, lambda text: json.dumps(json.loads(text) | {field: value}))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="config.json|does not fit|another network") as error:
        load_model(folder)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 5


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", "\0", '{"kind": "m3ddm", "surplus": 1}'])
def test_a_damaged_config_is_one_line(saved, tmp_path, text):
    with pytest.raises(ValueError, match="config.json"):
        load_model(damaged(saved, tmp_path, lambda _: text))


def test_twenty_billion_parameters_are_accepted(tmp_path):
    wide = {"attention_levels": (False, False), "block_out_channels": (10240, 10240), "layers_per_block": 1}
    shapes = registry.abstract_variables(registry.build("m3ddm", **wide))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) > 20e9
    with pytest.raises(ValueError, match="68,719,476,736 are accepted"):
        wide["block_out_channels"] = (65536, 65536)
        registry.abstract_variables(registry.build("m3ddm", **wide))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(saved, tmp_path, value):
    _, module, variables = saved
    changed = jax.tree.map(np.copy, variables)
    changed["params"]["conv_in"]["kernel"].flat[3] = value
    save_model(tmp_path / "a", module, changed)
    with pytest.raises(ValueError, match=r"not finite: in params\.conv_in\.kernel"):
        load_model(tmp_path / "a")


def test_weights_that_are_a_pipe_are_refused(saved, tmp_path):
    folder = damaged(saved, tmp_path, lambda text: text)
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(ValueError, match="a pipe"):
        load_model(folder)


def test_a_folder_that_a_killed_process_moved_aside_is_found(saved, tmp_path):
    folder = damaged(saved, tmp_path, lambda text: text)
    folder.rename(tmp_path / f".damaged.{place()}-{2**22}-01234567.old")
    assert load_model(folder)[0] == saved[1]


def test_hyper_parameters_that_are_gone_are_ignored_at_their_old_default(tmp_path):
    sizes = {"block_out_channels": (8,), "attention_levels": (False,), "num_heads": (2,), "layers_per_block": 1}
    module = registry.build("globalpaint", **sizes, norm_num_groups=4, text_dim=4, global_guidance=False, est="off")
    shapes = registry.abstract_variables(module)
    save_model(tmp_path / "model", module, jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(shapes)))
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"est_parallel": False, "est_positions": "rope"}))
    assert load_model(tmp_path / "model", kind="globalpaint")[0] == module
    file.write_text(json.dumps(config | {"est_positions": "rel_bias"}))
    with pytest.raises(ValueError, match="has est_positions='rel_bias', which is not supported any more: 'rope' is"):
        load_model(tmp_path / "model")
