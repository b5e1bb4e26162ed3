import json
import os
import time

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from m3ddm_jax.weights.tensors import read_safetensors, write_safetensors

TENSORS = {
    "b.half": np.arange(3, dtype=np.float16),
    "a.matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "view": np.arange(24, dtype=np.float64).reshape(2, 3, 4).transpose(2, 0, 1),
    "scalar": np.array(7, np.int64),
    "nothing": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False]),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)


def test_the_safetensors_package_reads_what_is_written(tmp_path):
    tensors = TENSORS | {"device": jnp.ones((2, 2)), "brain": np.asarray(jnp.linspace(0, 1, 5, dtype=jnp.bfloat16))}
    write_safetensors(tmp_path / "a", tensors)
    assert_same(load_file(tmp_path / "a"), tensors)
    assert_same(read_safetensors(tmp_path / "a"), tensors)


def test_reads_what_the_safetensors_package_writes(tmp_path):
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "a", metadata={"format": "pt"})
    assert_same(read_safetensors(tmp_path / "a"), tensors)


def test_the_same_tensors_are_the_same_file(tmp_path):
    write_safetensors(tmp_path / "a", TENSORS)
    write_safetensors(tmp_path / "b", dict(reversed(TENSORS.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    entries = json.loads((tmp_path / "a").read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert all(entry["data_offsets"][0] % TENSORS[name].itemsize == 0 for name, entry in entries.items())


def test_tensors_are_mapped_not_read(tmp_path):
    write_safetensors(tmp_path / "a", {"a": np.ones(1000, np.float32)})
    tensors = read_safetensors(tmp_path / "a")
    # What is written into the file afterwards shows in a mapping alone.
    with (tmp_path / "a").open("r+b") as file:
        file.seek(-4000, 2)
        file.write(np.full(1000, 2, np.float32).tobytes())
    np.testing.assert_array_equal(tensors["a"], np.full(1000, 2))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda whole: whole[:-1], "it is cut off after"),
        (lambda whole: whole[:100], "a header of"),
        (lambda whole: whole[:4], "a header of"),
        (lambda whole: b"", "cannot be read"),
        (lambda whole: whole.replace(b'"F16"', b'"F17"'), "F17"),
        (lambda whole: whole.replace(b'"shape":[2,3]', b'"shape":[2,4]'), "in 24 bytes"),
        (lambda whole: whole.replace(b'{"', b'["', 1), "cannot be read as safetensors"),
    ],
)
def test_broken_files_are_one_clear_line(tmp_path, change, problem):
    write_safetensors(tmp_path / "a", TENSORS)
    (tmp_path / "a").write_bytes(change((tmp_path / "a").read_bytes()))
    with pytest.raises(ValueError, match=problem) as error:
        read_safetensors(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        read_safetensors(tmp_path / "a")


def safetensors(path, entries, size=8):
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]},
        {"dtype": "F32", "shape": [10**30], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        ["F32"],
    ],
)
def test_entries_that_are_none(tmp_path, entry):
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        read_safetensors(safetensors(tmp_path / "a", {"a": entry}))


def test_overlapping_tensors_are_refused_at_once(tmp_path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match="tensors overlap"):
        read_safetensors(safetensors(tmp_path / "a", {"a": entry, "b": entry}))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="a header of|tensors"):
        read_safetensors(safetensors(tmp_path / "a", {f"{i}": entry for i in range(300_000)}))
    with pytest.raises(ValueError, match="100,000 tensors"):
        read_safetensors(safetensors(tmp_path / "a", {f"{i}": entry for i in range(100_000)}))
    assert time.perf_counter() - start < 2


def test_a_pipe_is_no_weights_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="a pipe"):
        read_safetensors(tmp_path / "pipe")
