import collections
import os
import pickle

import numpy as np
import pytest

from m3ddm_jax.weights.numpy_pickle import read_numpy_pickle


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_reads_nested_arrays(protocol):
    rng = np.random.default_rng(0)
    tree = {
        "a": {"kernel": rng.normal(size=(2, 3)).astype(np.float32), "count": np.arange(3, dtype=np.int64)},
        "big_endian": np.arange(4, dtype=">f4"),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "empty": np.zeros((0, 2), np.float16),
    }
    found = read_numpy_pickle(pickle.dumps(tree, protocol), "file")
    assert found.keys() == {"a/kernel", "a/count", "big_endian", "fortran", "empty"}
    for name, expected in (("a/kernel", tree["a"]["kernel"]), *list(tree.items())[1:]):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype


def test_old_and_new_module_names_of_numpy():
    data = pickle.dumps({"x": np.ones(2)}, 3)
    assert b"numpy._core.multiarray" in data
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read_numpy_pickle(old, "file")["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(os.system, "touch {}"), r"it holds (posix|nt)\.system, only numpy arrays are accepted"),
        (Evil(eval, "open('{}', 'w')"), r"it holds builtins\.eval"),
        ({"a": np.ones(2), "b": Evil(os.mkdir, "{}")}, r"it holds posix\.mkdir"),
        ({"a": collections.OrderedDict()}, r"collections\.OrderedDict"),
        ({"a": np.array([{}], object)}, "dtype 'O8'"),
        ({"a": np.zeros(2, "f4,i4")}, "dtype"),
        ({"a": np.float32(1)}, r"multiarray\.scalar"),
        ({"a": [1, 2]}, "it holds list"),
        ({1: np.ones(2)}, "it holds dict"),
        (np.ndarray, "it holds type"),
    ],
)
def test_refuses_everything_else(content, message, tmp_path):
    trap = tmp_path / "trap"
    if isinstance(content, Evil):
        content.arguments = tuple(argument.format(trap) for argument in content.arguments)
    with pytest.raises(ValueError, match=message):
        read_numpy_pickle(pickle.dumps(content), "file")
    assert not trap.exists()


def test_refuses_shapes_without_their_bytes():
    data = pickle.dumps({"a": np.zeros(3, np.uint8)}, 3)
    assert data.count(b"K\x03\x85") == 1
    with pytest.raises(ValueError, match="other content than its size says"):
        read_numpy_pickle(data.replace(b"K\x03\x85", b"K\xff\x85"), "file")


def test_refuses_a_dict_that_repeats_without_end():
    tree = {"x": np.ones(1)}
    for _ in range(14):
        tree = {str(i): tree for i in range(8)}
    with pytest.raises(ValueError, match="more than 10000 arrays"):
        read_numpy_pickle(pickle.dumps(tree), "file")
    ring = {}
    ring["ring"] = ring
    with pytest.raises(ValueError, match="16 levels"):
        read_numpy_pickle(pickle.dumps(ring), "file")


def test_refuses_damage():
    data = pickle.dumps({"a": np.arange(1000.0)})
    for damaged in (b"", data[:-20], data[:100], b"no pickle", data[:30] + b"\xff\xff\xff" + data[33:]):
        with pytest.raises(ValueError, match="^file cannot be read"):
            read_numpy_pickle(damaged, "file")
