import importlib.util
import json
import re

import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from m3ddm_jax.weights import i3d
from m3ddm_jax.weights.i3d import i3d_from_state_dict, read_i3d


@pytest.fixture(scope="module")
def rows(goldens):
    """Every tensor of the network: its names, its TensorFlow shape, and its value under "value"."""
    spec = importlib.util.spec_from_file_location("recipe", goldens / "metrics/recipe.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    rows = json.loads((goldens / "metrics/i3d/name_map.json").read_text())["tensors"]
    return [{**row, "value": recipe.weight(row["tf"], row["shape"])} for row in rows]


def to_torch(value):
    return value.transpose(4, 3, 0, 1, 2) if value.ndim == 5 else value


def check_tree(variables, rows, ones=()):
    flat = flatten_dict(variables, sep="/")
    assert flat.keys() == {f"{row['flax_collection']}/{row['flax']}" for row in rows}
    for row in rows:
        found = flat[f"{row['flax_collection']}/{row['flax']}"]
        expected = np.ones(row["shape"]) if row["tf"] in ones else row["value"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=row["flax"])


@pytest.mark.parametrize("dialect", ["piergiaj", "hassony2"])
def test_pytorch_ports(rows, dialect):
    tensors = {f"module.{row[dialect]}": to_torch(row["value"]) for row in rows}
    tensors["module.Conv3d_2b_1x1.bn.num_batches_tracked"] = np.array(7)
    module, variables = i3d_from_state_dict(tensors, bn_epsilon=1e-5)
    assert (module.num_classes, module.bn_epsilon) == (400, 1e-5)
    check_tree(variables, rows)


def test_variables_of_the_tensorflow_hub(rows, tmp_path):
    """Prefixed names, [1,1,1,1,C] norms without scale, as .npz."""
    saved = {f"{row['tf']}:0": row["value"] for row in rows if row["in_tf_checkpoint"]}
    saved = {name: value if value.ndim == 5 else value[None, None, None, None] for name, value in saved.items()}
    np.savez(tmp_path / "hub.npz", **saved)
    module, variables = i3d_from_state_dict(read_i3d(tmp_path / "hub.npz"))
    assert module.bn_epsilon == 1e-3
    check_tree(variables, rows, ones={row["tf"] for row in rows if not row["in_tf_checkpoint"]})


def test_variables_of_a_tensorflow_checkpoint(rows):
    """No prefix, 600 classes, an optimizer's slots."""
    saved = {row["tf"].removeprefix("RGB/inception_i3d/"): row["value"] for row in rows}
    for name in [name for name in saved if name.startswith("Logits/")]:
        saved[name] = np.resize(saved[name], (*saved[name].shape[:-1], 600))
    saved |= {f"{name}/Momentum": value for name, value in saved.items()}
    module, variables = i3d_from_state_dict(saved)
    assert module.num_classes == 600
    assert variables["params"]["Logits"]["Conv3d_0c_1x1"]["conv"]["kernel"].shape == (1, 1, 1, 1024, 600)


class Holder(torch.nn.Module):
    """Any module whose state dict has the given names."""

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            *scopes, leaf = name.split(".")
            target = self
            for scope in scopes:
                if not hasattr(target, scope):
                    target.add_module(scope, torch.nn.Module())
                target = getattr(target, scope)
            target.register_buffer(leaf, torch.tensor(np.ascontiguousarray(value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_a_torchscript_archive(rows, tmp_path):
    archive = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Holder({row["hassony2"]: to_torch(row["value"]) for row in rows})).save(archive)
    check_tree(i3d_from_state_dict(read_i3d(archive))[1], rows)


def test_a_pickle_is_read_as_one(rows, tmp_path):
    torch.save({"Conv3d_2b_1x1.bn.bias": torch.arange(3.0)}, tmp_path / "rgb.pt")
    assert read_i3d(tmp_path / "rgb.pt")["Conv3d_2b_1x1.bn.bias"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            "params.Conv3d_1a_7x7.conv.kernel",
            (
                "Conv3d_1a_7x7/conv_3d/w",
                "Conv3d_1a_7x7.conv3d.weight",
                "conv3d_1a_7x7.conv3d.weight",
                "params/Conv3d_1a_7x7/Conv_0/kernel",
            ),
        ),
        (
            "batch_stats.Mixed_5b.Branch_2.Conv3d_0b_3x3.bn.var",
            (
                "Mixed_5b/Branch_2/Conv3d_0a_3x3/batch_norm/moving_variance",
                "Mixed_5b.b2b.bn.running_var",
                "mixed_5b.branch_2.1.batch3d.running_var",
                "batch_stats/Mixed_5b/Branch_2/Conv3d_0b_3x3/BatchNorm_0/var",
            ),
        ),
        (
            "params.Mixed_3b.Branch_0.Conv3d_0a_1x1.bn.scale",
            (
                "Mixed_3b/Branch_0/Conv3d_0a_1x1/batch_norm/gamma",
                "Mixed_3b.b0.bn.weight",
                "mixed_3b.branch_0.batch3d.weight",
                "params/Mixed_3b/Branch_0/Conv3d_0a_1x1/BatchNorm_0/scale",
            ),
        ),
        (
            "params.Mixed_3b.Branch_3.Conv3d_0b_1x1.bn.bias",
            (
                "Mixed_3b/Branch_3/Conv3d_0b_1x1/batch_norm/beta",
                "Mixed_3b.b3b.bn.bias",
                "mixed_3b.branch_3.1.batch3d.bias",
                "params/Mixed_3b/Branch_3/Conv3d_0b_1x1/BatchNorm_0/bias",
            ),
        ),
        (
            "params.Logits.Conv3d_0c_1x1.conv.bias",
            (
                "Logits/Conv3d_0c_1x1/conv_3d/b",
                "logits.conv3d.bias",
                "conv3d_0c_1x1.conv3d.bias",
                "params/Logits/Conv3d_0c_1x1/Conv_0/bias",
            ),
        ),
    ],
)
def test_names(path, names):
    assert tuple(dialect.name(path) for dialect in i3d._DIALECTS) == names


def test_missing_surplus_and_misshapen_tensors_are_listed(rows):
    tensors = {row["piergiaj"]: to_torch(row["value"]) for row in rows}
    del tensors["Mixed_4c.b1a.bn.weight"], tensors["logits.conv3d.bias"]
    tensors["Mixed_4c.b9.bn.weight"] = np.ones(3, np.float32)
    tensors["Mixed_5c.b0.bn.bias"] = np.ones(7, np.float32)
    with pytest.raises(ValueError) as error:
        i3d_from_state_dict(tensors)
    assert re.search(
        r"piergiaj .*missing Mixed_4c\.b1a\.bn\.weight \[112\]; missing logits\.conv3d\.bias \[400\]; "
        r"surplus Mixed_4c\.b9\.bn\.weight \[3\]; Mixed_5c\.b0\.bn\.bias is \[7\], expected \[384\]",
        str(error.value),
    )


def test_what_is_no_i3d_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of 1 tensors none .*Conv3d_1a_7x7/conv_3d/w \(TensorFlow\)"):
        i3d_from_state_dict({"features.0.weight": np.zeros((64, 3, 11, 11))})
    with pytest.raises(ValueError, match="does not exist"):
        read_i3d(tmp_path / "nothing.pt")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="cut.npz cannot be read"):
        read_i3d(tmp_path / "cut.npz")
