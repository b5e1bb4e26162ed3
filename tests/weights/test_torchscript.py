import pickle
import zipfile

import numpy as np
import pytest
import torch

from m3ddm_jax.weights.i3d import read_i3d
from m3ddm_jax.weights.torchscript import is_torchscript, read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)
        self.transposed = torch.nn.Parameter(torch.randn(4, 6).t())
        self.names, self.sizes, self.register = ["a"], (1, 2.0, None), 3

    def forward(self, x):
        return self.norm(x)


@pytest.mark.parametrize("kind", ["float", "half", "double", "bfloat16"])
def test_equals_what_torch_reads(tmp_path, kind):
    torch.jit.script(getattr(Module(), kind)()).save(tmp_path / "a.pt")
    assert is_torchscript(tmp_path / "a.pt")
    found, expected = read_torchscript(tmp_path / "a.pt"), torch.jit.load(tmp_path / "a.pt").state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float64), value.double().numpy())


def archive(path, pickled, storage=bytes(8)):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/data/0", storage)
        file.writestr("m/constants.pkl", pickle.dumps((), 2))
    return path


def test_code_in_an_archive_does_not_run(tmp_path, monkeypatch):
    """Its own state-restoring code, and what pickles can name."""
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return pickle.Unpickler, (str(marker),)

    archive(tmp_path / "evil.pt", pickle.dumps(Runs(), 2))
    with pytest.raises(ValueError, match="evil.pt is not loaded: it holds _?pickle.Unpickler") as error:
        read_i3d(tmp_path / "evil.pt")
    assert "\n" not in str(error.value)
    stateful = b"\x80\x02c__torch__\nEvil\n)\x81(K\x01tb."
    with pytest.raises(ValueError, match="whose state only its own code restores"):
        read_i3d(archive(tmp_path / "stateful.pt", stateful))
    assert not marker.exists()


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ"


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (b"K\x00", b"K\x03\x85", b"K\x01\x85"),
        (b"K\x02", b"K\x01\x85", b"K\x01\x85"),
        (b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
        (b"K\x00", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
        (b"K\x00", b"K\x02\x85", b")"),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, shape, stride):
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + shape + stride + b"\x89}tR"
    pickled = b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00w" + tensor + b"sb."
    with pytest.raises(ValueError, match="it holds a tensor of shape"):
        read_torchscript(archive(tmp_path / "a.pt", pickled))
