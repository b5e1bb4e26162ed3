import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

from m3ddm_jax.weights import hub
from m3ddm_jax.weights.checkpoint import contradictions, open_checkpoint, read_sizes


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": np.full(2, value, np.float32)}, path)


def value_of(source):
    return open_checkpoint(source, "unet").tensors["a"][0]


def test_which_file_of_a_folder(tmp_path):
    put(tmp_path / "anything.safetensors", 1)
    assert value_of(tmp_path) == 1
    put(tmp_path / "another.safetensors", 2)
    with pytest.raises(ValueError, match="several weights files, name one: another.safetensors, anything.safetensors"):
        value_of(tmp_path)
    put(tmp_path / "diffusion_pytorch_model.fp16.safetensors", 3)
    assert value_of(tmp_path) == 3
    put(tmp_path / "diffusion_pytorch_model.safetensors", 4)
    assert value_of(tmp_path) == 4
    put(tmp_path / "unet/diffusion_pytorch_model.safetensors", 5)
    assert value_of(tmp_path) == 5
    assert value_of(tmp_path / "anything.safetensors") == 1


@pytest.mark.parametrize("config", [{"x": 1}, {"config": {"x": 1}, "tensors": {}}])
def test_the_config_beside_the_file(tmp_path, config):
    put(tmp_path / "unet/a.safetensors", 1)
    (tmp_path / "config.json").write_text("not that of the file")
    assert open_checkpoint(tmp_path, "unet").config == {}
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path, "unet").config == {"x": 1}
    assert open_checkpoint(tmp_path / "unet/a.safetensors", "vae").config == {"x": 1}


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', '{"config": 3}'])
def test_a_broken_config(tmp_path, text):
    put(tmp_path / "a.safetensors", 1)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        open_checkpoint(tmp_path, "unet")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        open_checkpoint(tmp_path / "a.bin", "unet")
    with pytest.raises(ValueError, match=r"holds no weights: .* are looked for in it and unet/"):
        open_checkpoint(tmp_path, "unet")


def test_no_more_than_one_file_is_fetched(tmp_path, monkeypatch):
    """A repository with half-precision weights alone: every better file is asked for first."""
    asked = []

    def fetch(source, patterns):
        asked.append(patterns)
        if "unet/diffusion_pytorch_model.fp16.safetensors" in patterns:
            put(tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors", 7)
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    assert value_of("hf:owner/name") == 7
    assert len(asked) == 3
    assert all({"config.json", "unet/config.json"} < set(patterns) and len(patterns) == 4 for patterns in asked)


def test_a_repository_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda source, patterns: tmp_path)
    with pytest.raises(ValueError, match=r"hf:owner/name holds no diffusion_pytorch_model\.safetensors"):
        open_checkpoint("hf:owner/name", "unet")


def test_contradictions():
    config = {"widths": [1, 2], "groups": 4, "act_fn": "relu"}
    found = contradictions(config, {"widths": [1, 3], "groups": 4, "layers": 2}, {"act_fn": "silu", "eps": 1e-5})
    assert found == [
        "config.json says widths [1, 2], the shapes say [1, 3]",
        "config.json says act_fn relu, computed here is only silu",
    ]


def test_assumptions_are_warned_of(tmp_path):
    put(tmp_path / "a.safetensors", 1)
    assumed = {"attention_head_dim": 8, "norm_num_groups": 32}
    with pytest.warns(UserWarning, match=r"a\.safetensors says otherwise: 8 heads and 32 groups are assumed"):
        open_checkpoint(tmp_path, "unet").warn_of(assumed)
    (tmp_path / "config.json").write_text(json.dumps({name: 1 for name in assumed}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_checkpoint(tmp_path, "unet").warn_of(assumed)


class Default:
    width = 4
    widths = (8, 16)


FIELDS = {"w": "width", "ws": "widths"}


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8", None, [], [1]])
def test_what_is_no_whole_number(value):
    with pytest.raises(ValueError, match=r"config\.json says w .*: a whole number from 1 is accepted"):
        read_sizes({"w": value}, FIELDS, Default)


@pytest.mark.parametrize("value", [[], [1, 0], [[1]], "12", {"a": 1}])
def test_what_is_no_list_of_whole_numbers(value):
    with pytest.raises(ValueError, match=r"config\.json says ws .*: a list of whole numbers from 1 is accepted"):
        read_sizes({"ws": value}, FIELDS, Default)


def test_sizes_are_read_by_our_names():
    assert read_sizes({"w": 3, "ws": [3, 4], "other": "x"}, FIELDS, Default) == {"width": 3, "widths": (3, 4)}
    assert read_sizes({}, FIELDS, Default) == {}
