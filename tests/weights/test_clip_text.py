import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from m3ddm_jax.models.clip_text import CLIPText
from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.clip_text import clip_text_from_checkpoint, empty_prompt_embedding, empty_prompt_ids

MODULE = CLIPText(vocab_size=12, max_length=7, width=8, layers=2, num_heads=2, mlp_width=16, quick_gelu=False)
CONFIG = {"num_attention_heads": 2, "hidden_act": "gelu", "num_hidden_layers": 2, "layer_norm_eps": 1e-5}
VOCABULARY = {"!": 0, "a": 1, "<|startoftext|>": 10, "<|endoftext|>": 11}


def state_dict(seed=0):
    """A tower by transformers' names."""
    rng = np.random.default_rng(seed)
    shapes = {"embeddings.token_embedding.weight": (12, 8), "embeddings.position_embedding.weight": (7, 8)}
    for layer in ("encoder.layers.0.", "encoder.layers.1."):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{part}.weight": (8, 8), f"{layer}self_attn.{part}.bias": (8,)}
        shapes |= {f"{layer}mlp.fc1.weight": (16, 8), f"{layer}mlp.fc1.bias": (16,)}
        shapes |= {f"{layer}mlp.fc2.weight": (8, 16), f"{layer}mlp.fc2.bias": (8,)}
        shapes |= {f"{layer}layer_norm{n}.{leaf}": (8,) for n in (1, 2) for leaf in ("weight", "bias")}
    shapes |= {f"final_layer_norm.{leaf}": (8,) for leaf in ("weight", "bias")}
    tensors = {f"text_model.{name}": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {**tensors, "text_model.embeddings.position_ids": np.arange(7)[None]}


def write_tokenizer(folder, config=None, named=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    for name, content in {"tokenizer_config.json": config, "special_tokens_map.json": named}.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))


def test_every_tensor_finds_its_place():
    tensors = state_dict()
    module, variables = clip_text_from_checkpoint(Checkpoint("it", tensors, CONFIG))
    assert module == MODULE
    params, layer = variables["params"], "text_model.encoder.layers.1."
    np.testing.assert_array_equal(params["token_embedding"], tensors["text_model.embeddings.token_embedding.weight"])
    packed = np.concatenate([tensors[f"{layer}self_attn.{what}_proj.weight"] for what in "qkv"]).T
    np.testing.assert_array_equal(params["layers_1"]["attn_in_proj"]["kernel"], packed)
    np.testing.assert_array_equal(params["layers_1"]["mlp_c_proj"]["bias"], tensors[f"{layer}mlp.fc2.bias"])
    # Newer versions write no prefix and no constants.
    bare = {name.removeprefix("text_model."): value for name, value in tensors.items() if "position_ids" not in name}
    np.testing.assert_equal(clip_text_from_checkpoint(Checkpoint("it", bare, CONFIG))[1], variables)


def test_everything_that_does_not_fit_is_listed():
    tensors = state_dict()
    del tensors["text_model.encoder.layers.0.layer_norm1.bias"]
    tensors["text_projection.weight"] = np.zeros((8, 8), np.float32)
    message = r"missing encoder\.layers\.0\.layer_norm1\.bias \[8\]; surplus text_projection\.weight \[8, 8\]$"
    with pytest.raises(ValueError, match=message):
        clip_text_from_checkpoint(Checkpoint("it", tensors, CONFIG))
    with pytest.raises(ValueError, match="config.json says num_hidden_layers 3"):
        clip_text_from_checkpoint(Checkpoint("it", state_dict(), {**CONFIG, "num_hidden_layers": 3}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": None}, "says None heads of 8 channels"),
        ({"num_attention_heads": 3}, "says 3 heads of 8 channels"),
        ({"hidden_act": "relu"}, "says hidden_act 'relu', not one of quick_gelu, gelu"),
    ],
)
def test_a_config_must_say_what_no_shape_shows(change, message):
    with pytest.raises(ValueError, match=message):
        clip_text_from_checkpoint(Checkpoint("it", state_dict(), {**CONFIG, **change}))


@pytest.mark.parametrize(
    ("config", "named", "padding"),
    [
        (None, None, 11),
        ({"pad_token": "<|endoftext|>"}, None, 11),
        ({"pad_token": {"content": "!"}}, None, 0),
        # Stable Diffusion 2's two files differ.
        ({"pad_token": "<|endoftext|>"}, {"pad_token": "!"}, 0),
        ({"pad_token": "!", "added_tokens_decoder": {}}, {"pad_token": "<|endoftext|>"}, 0),
    ],
)
def test_the_tokenizer_says_what_it_pads_with(tmp_path, config, named, padding):
    write_tokenizer(tmp_path, config, named)
    assert empty_prompt_ids(tmp_path, 5) == [10, 11, padding, padding, padding]


def test_a_tokenizer_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="has no vocab.json: it is no folder of CLIP's tokenizer"):
        empty_prompt_ids(tmp_path, 5)
    write_tokenizer(tmp_path, {"pad_token": "?"})
    with pytest.raises(ValueError, match=r"the pad_token '\?' is not in vocab.json"):
        empty_prompt_ids(tmp_path, 5)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(ValueError, match="vocab.json holds no JSON object"):
        empty_prompt_ids(tmp_path, 5)


def test_the_empty_prompt_of_a_folder(tmp_path):
    write_tokenizer(tmp_path / "tokenizer", named={"pad_token": "!"})
    with pytest.raises(ValueError, match="has none of text_encoder/model.safetensors, "):
        empty_prompt_embedding(tmp_path)
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(CONFIG))
    halves = {name: value.astype(np.float16) for name, value in state_dict().items() if "position_ids" not in name}
    save_file(halves, tmp_path / "text_encoder/model.fp16.safetensors")
    save_file(state_dict(), tmp_path / "text_encoder/model.safetensors")
    found = empty_prompt_embedding(tmp_path)
    assert found.dtype == np.float32 and found.shape == (7, 8)
    module, variables = clip_text_from_checkpoint(Checkpoint("it", state_dict(), CONFIG))
    expected = jax.jit(module.apply)(variables, np.array([[10, 11, 0, 0, 0, 0, 0]]))[0]
    np.testing.assert_array_equal(found, expected)
    (tmp_path / "text_encoder/model.safetensors").unlink()
    # Half precision has eleven bits.
    np.testing.assert_allclose(empty_prompt_embedding(tmp_path), expected, atol=0.05)


def test_a_tokenizer_of_another_tower(tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/vocab.json").write_text(json.dumps({**VOCABULARY, "<|endoftext|>": 12}))
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(CONFIG))
    save_file(state_dict(), tmp_path / "text_encoder/model.safetensors")
    with pytest.raises(ValueError, match=re.escape("the tokenizer knows token 12, the tower 12 tokens")):
        empty_prompt_embedding(tmp_path)
