import json
import warnings

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.numpy import save_file

from m3ddm_jax.models.openclip import MEAN, STD, OpenCLIPVision
from m3ddm_jax.weights.openclip import openclip_from_source, openclip_from_state_dict

VISION = {"image_size": 16, "patch_size": 4, "width": 12, "layers": 3, "head_width": 4, "mlp_ratio": 2.0}
TEXT = {"context_length": 5, "vocab_size": 20, "width": 8, "heads": 2, "layers": 2}
MODULE = OpenCLIPVision(image_size=16, patch_size=4, width=12, layers=3, num_heads=3, mlp_width=24)
CONFIG = {"vision_cfg": VISION, "text_cfg": TEXT, "embed_dim": 6}
ARCHIVE = {"model_cfg": CONFIG, "preprocess_cfg": {"mean": list(MEAN), "std": list(STD)}}


def state_dict(kind=CLIP):
    torch.manual_seed(0)
    network = kind(6, VISION, TEXT)
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
def test_both_towers_in_one_file(kind):
    """The vision tower is taken; text towers lie beside it or under `text.`."""
    tensors = state_dict(kind)
    module, variables = openclip_from_state_dict("it", tensors, CONFIG)
    assert module == MODULE
    params = variables["params"]
    assert params.keys() == {
        *("class_embedding", "positional_embedding", "conv1", "ln_pre", "ln_post", "resblocks_0", "resblocks_1")
    }
    np.testing.assert_array_equal(params["positional_embedding"], tensors["visual.positional_embedding"])
    np.testing.assert_array_equal(params["conv1"]["kernel"], np.transpose(tensors["visual.conv1.weight"], (2, 3, 1, 0)))
    for theirs, ours, leaf in [("attn.in_proj_", "attn_in_proj", "kernel"), ("mlp.c_fc.", "mlp_c_fc", "kernel")]:
        expected = tensors[f"visual.transformer.resblocks.1.{theirs}weight"].T
        np.testing.assert_array_equal(params["resblocks_1"][ours][leaf], expected)


def test_the_vision_tower_alone():
    both = state_dict()
    alone = {name.removeprefix("visual."): value for name, value in both.items() if name.startswith("visual.")}
    found, expected = (openclip_from_state_dict("it", tensors, CONFIG) for tensors in (alone, both))
    assert found[0] == expected[0]
    np.testing.assert_equal(found[1], expected[1])


def test_everything_else_must_fit():
    tensors = state_dict()
    del tensors["visual.transformer.resblocks.0.attn.in_proj_bias"]
    tensors["visual.ln_pre.bias"] = np.zeros(7, np.float32)
    tensors["visual.transformer.resblocks.1.ls_1.gamma"] = tensors["scale"] = np.zeros(3, np.float32)
    message = (
        r"missing transformer\.resblocks\.0\.attn\.in_proj_bias \[36\]; surplus scale \[3\]; "
        r"surplus transformer\.resblocks\.1\.ls_1\.gamma \[3\]; ln_pre\.bias is \[7\], expected \[12\]$"
    )
    with pytest.raises(ValueError, match=message):
        openclip_from_state_dict("it", tensors, CONFIG)


def test_another_network():
    with pytest.raises(ValueError, match="it is another network's: 0 of"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openclip_from_state_dict("it", {"conv_in.weight": np.zeros((3, 3))})


def test_a_config_says_what_no_shape_shows():
    module, _ = openclip_from_state_dict("it", state_dict(), {**CONFIG, "quick_gelu": True})
    assert module.quick_gelu and module.num_heads == 3
    with pytest.raises(ValueError, match="12 channels do not divide into heads of 5"):
        openclip_from_state_dict("it", state_dict(), {"vision_cfg": {**VISION, "head_width": 5}})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("vision_cfg", "layers", 4), ("vision_cfg", "norm_kwargs", {"eps": 1e-6}), ("preprocess_cfg", "mean", [0.5] * 3)],
)
def test_a_config_that_says_otherwise_is_refused(section, name, value):
    config = {**CONFIG, section: {**CONFIG.get(section, {}), name: value}}
    with pytest.raises(ValueError, match=f"open_clip_config.json says {name} "):
        openclip_from_state_dict("it", state_dict(), config)


def test_without_a_config_heads_are_those_of_published_towers():
    torch.manual_seed(0)
    network = CLIP(6, {**VISION, "width": 64, "head_width": 64}, TEXT)
    tensors = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    with pytest.warns(UserWarning, match="heads of 64 channels and the exact GELU are assumed"):
        assert openclip_from_state_dict("it", tensors)[0].num_heads == 1
    # One element seen from everywhere: tensors of full size that take no memory.
    huge = OpenCLIPVision()
    width, mlp = huge.width, huge.mlp_width
    shapes = {"class_embedding": (width,), "positional_embedding": (257, width), "conv1.weight": (width, 3, 14, 14)}
    shapes |= {f"{norm}.{leaf}": (width,) for norm in ("ln_pre", "ln_post") for leaf in ("weight", "bias")}
    shapes["proj"] = (width, 1024)
    for layer in range(32):
        block = f"transformer.resblocks.{layer}."
        shapes |= {f"{block}{norm}.{leaf}": (width,) for norm in ("ln_1", "ln_2") for leaf in ("weight", "bias")}
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        shapes |= {f"{block}attn.out_proj.weight": (width, width), f"{block}attn.out_proj.bias": (width,)}
        shapes |= {f"{block}mlp.c_fc.weight": (mlp, width), f"{block}mlp.c_fc.bias": (mlp,)}
        shapes |= {f"{block}mlp.c_proj.weight": (width, mlp), f"{block}mlp.c_proj.bias": (width,)}
    tensors = {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in shapes.items()}
    with pytest.warns(UserWarning, match="heads of 80 channels"):
        assert openclip_from_state_dict("it", tensors)[0] == huge


@pytest.mark.parametrize("suffix", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_as_open_clip_publishes_it(tmp_path, suffix):
    tensors = state_dict()
    if suffix.endswith("bin"):
        torch.save({name: torch.tensor(value) for name, value in tensors.items()}, tmp_path / f"open_clip_{suffix}")
    else:
        save_file(tensors, tmp_path / f"open_clip_{suffix}")
    (tmp_path / "config.json").write_text("transformers'")
    (tmp_path / "pytorch_model.bin").write_text("transformers'")
    (tmp_path / "open_clip_config.json").write_text(json.dumps(ARCHIVE))
    for source in (tmp_path, tmp_path / f"open_clip_{suffix}"):
        module, variables = openclip_from_source(source)
        assert module == MODULE
        np.testing.assert_equal(variables, openclip_from_state_dict("it", tensors, CONFIG)[1])
    for broken, message in [("{", "cannot be read"), ("{}", "describes no OpenCLIP model")]:
        (tmp_path / "open_clip_config.json").write_text(broken)
        with pytest.raises(ValueError, match=f"open_clip_config.json.*{message}"):
            openclip_from_source(tmp_path)
