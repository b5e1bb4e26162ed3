"""The reference is open_clip's text tower, which computes what transformers' does."""

import functools

import jax
import numpy as np
import pytest
import torch
from open_clip.transformer import QuickGELU, TextTransformer

from m3ddm_jax.weights.checkpoint import Checkpoint
from m3ddm_jax.weights.clip_text import clip_text_from_checkpoint

LENGTH, VOCABULARY, WIDTH, HEADS, LAYERS = 9, 30, 24, 3, 2
# What open_clip calls the parts of a layer, and what transformers calls them.
RENAMES = {
    "transformer.resblocks.": "encoder.layers.",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_final": "final_layer_norm",
    "token_embedding": "embeddings.token_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
}


def transformers_names(state_dict):
    """open_clip's text tower by the names of transformers' CLIPTextModel."""
    tensors = {}
    for name, tensor in state_dict.items():
        for theirs, wanted in RENAMES.items():
            name = name.replace(theirs, wanted)
        if "attn.in_proj_" in name:
            for what, part in zip("qkv", np.split(tensor.numpy(), 3), strict=True):
                tensors[name.replace("attn.in_proj_", f"self_attn.{what}_proj.")] = part
        elif name not in ("attn_mask", "text_projection"):
            tensors[name] = tensor.numpy()
    return {f"text_model.{name}": tensor for name, tensor in tensors.items()}


@functools.cache
def towers(quick_gelu):
    torch.manual_seed(0)
    tower = TextTransformer(
        context_length=LENGTH,
        vocab_size=VOCABULARY,
        width=WIDTH,
        heads=HEADS,
        layers=LAYERS,
        mlp_ratio=2.0,
        act_layer=QuickGELU if quick_gelu else torch.nn.GELU,
        output_tokens=True,
    ).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    config = {"num_attention_heads": HEADS, "hidden_act": "quick_gelu" if quick_gelu else "gelu"}
    with torch.no_grad():
        tensors = transformers_names(tower.state_dict())
    return tower, *clip_text_from_checkpoint(Checkpoint("it", tensors, config))


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_equals_open_clip(quick_gelu):
    tower, module, variables = towers(quick_gelu)
    token_ids = np.random.default_rng(0).integers(VOCABULARY, size=(2, LENGTH))
    with torch.no_grad():
        _, expected = tower(torch.tensor(token_ids))
    made = jax.jit(module.apply)(variables, token_ids)
    # float32 sums in another order.
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_a_token_sees_nothing_behind_it():
    _, module, variables = towers(True)
    token_ids = np.random.default_rng(1).integers(VOCABULARY, size=(1, LENGTH))
    other = token_ids.copy()
    other[:, 5:] = (other[:, 5:] + 1) % VOCABULARY
    apply = jax.jit(module.apply)
    first, second = np.asarray(apply(variables, token_ids)), np.asarray(apply(variables, other))
    np.testing.assert_array_equal(first[:, :5], second[:, :5])
    assert np.all((first != second)[:, 5:].any(-1))
