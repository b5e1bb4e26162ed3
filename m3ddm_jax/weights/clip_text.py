"""CLIP's text tower beside a Stable Diffusion model, as transformers stores it, and the empty prompt's embedding."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from m3ddm_jax.files.opening import read_json
from m3ddm_jax.models.clip_text import CLIPText
from m3ddm_jax.types import Variables
from m3ddm_jax.weights.checkpoint import Checkpoint, contradictions, open_checkpoint
from m3ddm_jax.weights.names import Target, count, size, take
from m3ddm_jax.weights.sources import find_file

_WEIGHTS = tuple(
    f"text_encoder/{name}.{end}"
    for end in ("safetensors", "bin", "fp16.safetensors", "fp16.bin")
    for name in ("model", "pytorch_model")
)
_VOCABULARY = "tokenizer/vocab.json"
_PREFIX = "text_model."
# A constant that old versions stored.
_UNUSED = "embeddings.position_ids"
_TABLES = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight")
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}
_FIXED = {"layer_norm_eps": 1e-5}
_SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
"""Special tokens of CLIP's tokenizer where its files say nothing else."""
_LAYERS = {
    "attn_in_proj": "self_attn.in_proj",
    "attn_out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp_c_fc": "mlp.fc1",
    "mlp_c_proj": "mlp.fc2",
}
"""Parts of our residual block, and what transformers calls them; query, key and value are three layers there."""


def empty_prompt_embedding(source: str | os.PathLike) -> np.ndarray:
    """What Stable Diffusion's denoiser is given for no text: float32 [77, C], behind the text tower's final norm.

    source: a folder in the layout of diffusers with text_encoder/ and tokenizer/, or hf:OWNER/NAME.
    Raises ValueError where a file of them is missing or broken, or is of another text tower.
    """
    weights = find_file(source, _WEIGHTS, ["text_encoder/config.json", "tokenizer/*"])
    module, variables = clip_text_from_checkpoint(open_checkpoint(weights, "text_encoder"))
    token_ids = empty_prompt_ids(weights.parents[1] / "tokenizer", module.max_length)
    if max(token_ids) >= module.vocab_size:
        raise ValueError(f"{source}: the tokenizer knows token {max(token_ids)}, the tower {module.vocab_size} tokens")
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(module.apply)(variables, np.array([token_ids]))[0])


def empty_prompt_ids(folder: str | os.PathLike, length: int) -> list[int]:
    """The empty prompt's tokens: its begin, its end, and padding up to a length.

    folder: of CLIP's tokenizer, with vocab.json and what names its special tokens, tokenizer_config.json and
    special_tokens_map.json. Of the two the second is right, but where the first lists the tokens' definitions itself.
    Raises ValueError where vocab.json is missing, a file is broken, or a special token is in no vocabulary.
    """
    vocabulary = _read_json(Path(folder) / "vocab.json")
    if vocabulary is None:
        raise ValueError(f"{folder} has no vocab.json: it is no folder of CLIP's tokenizer")
    config = _read_json(Path(folder) / "tokenizer_config.json") or {}
    named = {} if "added_tokens_decoder" in config else _read_json(Path(folder) / "special_tokens_map.json") or {}
    ids = []
    for role, default in _SPECIAL.items():
        token = named.get(role) or config.get(role) or default
        token = token["content"] if isinstance(token, dict) else token
        if token not in vocabulary:
            raise ValueError(f"{folder}: the {role} {token!r} is not in vocab.json")
        ids.append(vocabulary[token])
    begin, end, padding = ids
    return [begin, end, *[padding] * (length - 2)]


def clip_text_from_checkpoint(checkpoint: Checkpoint) -> tuple[CLIPText, Variables]:
    """(module, variables as numpy) of transformers' CLIPTextModel; sizes are those of the shapes, the rest config's.

    Raises ValueError where config.json does not say heads and activation, and as `names.take`.
    """
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in checkpoint.tensors.items()}
    tensors.pop(_UNUSED, None)
    tensors = {name: tensor.T if name in _TABLES else tensor for name, tensor in tensors.items()}
    shown = _sizes(tensors)
    module = CLIPText(**{**shown, **_unseen(checkpoint, shown)})
    names = {"max_position_embeddings": "max_length", "num_hidden_layers": "layers", "hidden_size": "width"}
    said = {name: getattr(module, ours) for name, ours in names.items()}
    wanted = _targets(module)
    packed = _packed(tensors, module.layers)
    found = take(checkpoint.source, packed, wanted, contradictions(checkpoint.config, said, _FIXED))
    return module, unflatten_dict(found, sep=".")


def _sizes(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Hyper-parameters that the shapes show; what is missing is as in Stable Diffusion 1.5."""
    shown = {
        "vocab_size": size(tensors, _TABLES[0], axis=1),
        "max_length": size(tensors, _TABLES[1], axis=1),
        "width": size(tensors, _TABLES[0]),
        "layers": count(tensors, "encoder.layers.{}."),
        "mlp_width": size(tensors, "encoder.layers.0.mlp.fc1.bias"),
    }
    return {name: value for name, value in shown.items() if value}


def _unseen(checkpoint: Checkpoint, shown: Mapping[str, int]) -> dict[str, Any]:
    """Hyper-parameters that show in no shape."""
    heads, activation = (checkpoint.config.get(name) for name in ("num_attention_heads", "hidden_act"))
    width = shown.get("width", CLIPText.width)
    if type(heads) is not int or heads < 1 or width % heads:
        raise ValueError(f"config.json beside {checkpoint.source} says {heads!r} heads of {width} channels")
    if activation not in _ACTIVATIONS:
        accepted = ", ".join(_ACTIVATIONS)
        raise ValueError(
            f"config.json beside {checkpoint.source} says hidden_act {activation!r}, not one of {accepted}"
        )
    return {"num_heads": heads, "quick_gelu": _ACTIVATIONS[activation]}


def _packed(tensors: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """The tensors with query, key and value of each layer joined, as our block has them."""
    packed = dict(tensors)
    for layer in range(layers):
        for leaf in ("weight", "bias"):
            names = [f"encoder.layers.{layer}.self_attn.{what}_proj.{leaf}" for what in "qkv"]
            if all(name in packed for name in names):
                joined = np.concatenate([packed.pop(name) for name in names])
                packed[f"encoder.layers.{layer}.self_attn.in_proj.{leaf}"] = joined
    return packed


def _targets(module: CLIPText) -> dict[str, Target]:
    """The tower's weights by transformers' names; it is no model of its own, so that the registry does not know it."""
    token_ids = jax.ShapeDtypeStruct((1, module.max_length), np.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), token_ids)
    return {_torch_name(path): Target(path, leaf.shape) for path, leaf in flatten_dict(expected, sep=".").items()}


def _torch_name(path: str) -> str:
    _, *scopes, leaf = path.split(".")
    if not scopes:
        return f"embeddings.{leaf}.weight"
    if len(scopes) == 2:
        scopes = ["encoder", scopes[0].replace("_", "."), _LAYERS[scopes[1]]]
    return ".".join([*scopes, "bias" if leaf == "bias" else "weight"])


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    try:
        value = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value
