import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from m3ddm_jax.weights.inert import read_inert
from m3ddm_jax.weights.torchscript import is_torchscript


class Callback:
    """A class that the file names, as Lightning's checkpoints name theirs."""

    def __init__(self):
        self.best = {"a": 1}


def test_equals_what_torch_reads(tmp_path):
    tensors = {
        "whole": torch.randn(3, 4),
        "transposed": torch.randn(4, 6).t(),
        "part": torch.randn(10)[3:7],
        "half": torch.randn(5).half(),
        "counter": torch.tensor(7),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    content = {"state_dict": tensors, "callbacks": {Callback: Callback()}, "epoch": 3, "rest": [Callback(), {1, 2}]}
    torch.save(content, tmp_path / "a.ckpt")
    found = read_inert(tmp_path / "a.ckpt")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy())
    assert read_inert(tmp_path / "a.ckpt", lambda name: name == "part").keys() == {"part"}


def test_a_module_whose_state_dict_has_attributes_is_read(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    np.testing.assert_array_equal(read_inert(tmp_path / "a.pt")["0.weight"], network[0].weight.detach().numpy())


def test_code_in_a_file_does_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    torch.save({"state_dict": {"a": torch.ones(2)}, "evil": Runs()}, tmp_path / "a.ckpt")
    np.testing.assert_array_equal(read_inert(tmp_path / "a.ckpt")["a"], [1, 1])
    assert not marker.exists()
    torch.save({"evil": Runs()}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"b\.ckpt is not loaded: it holds no tensors by name"):
        read_inert(tmp_path / "b.ckpt")
    assert not marker.exists()


def test_bad_files_are_told_in_one_line(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "short.pt", "w") as file, zipfile.ZipFile(tmp_path / "two.pt", "w") as two:
        torch.save({"a": torch.ones(2)}, tmp_path / "whole.pt")
        with zipfile.ZipFile(tmp_path / "whole.pt") as whole:
            for name in whole.namelist():
                file.writestr(name, b"" if name.endswith("data/0") else whole.read(name))
        two.writestr("a/data.pkl", pickle.dumps({}))
        two.writestr("b/data.pkl", pickle.dumps({}))
    damaged = bytearray((tmp_path / "whole.pt").read_bytes())
    damaged[damaged.rindex(b"PK\x01\x02") + 6] = 118  # the version of ZIP that a member needs
    (tmp_path / "damaged.pt").write_bytes(damaged)
    assert not is_torchscript(tmp_path / "damaged.pt")
    cases = {
        "damaged": "cannot be read",
        "old": "older than PyTorch 1.6",
        "short": "cannot be read",
        "two": "holds 2 of data.pkl",
        "no": "not exist",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            read_inert(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
