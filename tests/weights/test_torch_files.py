import os
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from m3ddm_jax.weights.torch_files import read_state_dict

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a.bias": torch.arange(3, dtype=torch.float16),
    "b.weight": torch.linspace(0, 1, 8, dtype=torch.bfloat16).reshape(2, 4).T,
    "steps": torch.tensor(3),
}


def assert_whole(found):
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "a.weight": np.float32,
        "a.bias": np.float16,
        "b.weight": jnp.bfloat16,
        "steps": np.int64,
    }
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float64), tensor.double().numpy())


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pt", ".pth"])
def test_pickles(tmp_path, suffix):
    torch.save(TENSORS, tmp_path / f"a{suffix}")
    assert_whole(read_state_dict(tmp_path / f"a{suffix}"))


def test_pickles_of_old_versions(tmp_path):
    torch.save(TENSORS, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert_whole(read_state_dict(tmp_path / "a.bin"))


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrappers_come_off(tmp_path, wrapper):
    torch.save({wrapper: TENSORS, "epoch": 3, "note": "x"}, tmp_path / "a.ckpt")
    assert_whole(read_state_dict(tmp_path / "a.ckpt"))


def test_parameters_are_tensors(tmp_path):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pt")["a"], np.ones(2))


def test_pickles_are_mapped_not_read(tmp_path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "a.bin")
    tensors = read_state_dict(tmp_path / "a.bin")
    # What is written into the file afterwards shows in a mapping alone.
    ones, twos = (np.full(1000, value, np.float32).tobytes() for value in (1, 2))
    at = (tmp_path / "a.bin").read_bytes().index(ones)
    with (tmp_path / "a.bin").open("r+b") as file:
        file.seek(at)
        file.write(twos)
    np.testing.assert_array_equal(tensors["a"], np.full(1000, 2))


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("made by a pickle",)


def broken(name, tmp_path):
    path = tmp_path / f"{name}.bin"
    torch.save({"a": RunsCode()} if name == "code" else TENSORS, path, _use_new_zipfile_serialization=name != "old")
    whole = path.read_bytes()
    if name in ("short", "old"):
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "plain":
        path.write_bytes(pickle.dumps({"a": RunsCode()}))
    elif name == "text":
        path.write_text("hello world")
    elif name == "noise":
        path.write_bytes(bytes(range(256)))
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "module":
        torch.save(torch.nn.Linear(2, 2), path)
    elif name == "tensor":
        torch.save(torch.ones(2), path)
    elif name == "strange":
        torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    return path


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("code", r"more than tensors \(posix\.mkdir\), and unpickling that may run code"),
        ("plain", "may run code"),
        ("module", r"more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
        ("short", "cannot be read"),
        ("old", "cannot be read"),
        ("text", "cannot be read"),
        ("noise", "something else than tensors"),
        ("empty", "cannot be read"),
        ("tensor", "holds no tensors by name"),
        ("strange", "numpy has no type for"),
    ],
)
def test_bad_pickles_are_one_clear_line(tmp_path, monkeypatch, name, problem):
    monkeypatch.chdir(tmp_path)
    path = broken(name, tmp_path)
    with pytest.raises(ValueError, match=problem) as error:
        read_state_dict(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_torch(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "a.bin")
    save_file({"a": np.ones(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="pip install torch, or use a .safetensors file"):
        read_state_dict(tmp_path / "a.bin")
    assert read_state_dict(tmp_path / "a.safetensors").keys() == {"a"}


def test_other_files(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_state_dict(tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"\.safetensors, \.bin, \.ckpt, \.pt, \.pth, \.tar are accepted"):
        read_state_dict(tmp_path / "a.onnx")
