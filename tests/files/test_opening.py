import io
import json
import os
import time
import zipfile

import numpy as np
import pytest

from m3ddm_jax.files.limits import LIFT
from m3ddm_jax.files.opening import check_regular, read_json, read_npz


def test_pipes_devices_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "device"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=words):
            check_regular(path)
        for read in (read_json, read_npz):
            with pytest.raises(ValueError, match=words):
                read(path)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"\0" * 10, b"1" * 10_000, b"{" + b" " * (1 << 24)],
)
def test_damaged_json_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match="a.json cannot be read: ") as error:
        read_json(tmp_path / "a.json")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_json_comes_back(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, None]}))
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_arrays_come_back(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 3), np.float32)}
    (tmp_path / "a.npz").write_bytes(npz(**arrays))
    for found in (read_npz(tmp_path / "a.npz"), read_npz(io.BytesIO(npz(**arrays)))):
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)


def test_an_npz_that_expands_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "bomb.npz").write_bytes(npz(a=np.zeros(1 << 27, np.uint8)))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"expands from .* to 134,217,856 bytes: at most 20 times .*{LIFT}"):
        read_npz(tmp_path / "bomb.npz")
    assert time.perf_counter() - start < 1
    monkeypatch.setenv(LIFT, "1")
    assert read_npz(tmp_path / "bomb.npz")["a"].size == 1 << 27


def member(content, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("a.npy", content)
    return buffer.getvalue()


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x05\x06" + bytes(18),
        npz(a=np.arange(1000))[:200],
        member(b"\x93NUMPX\x01\x00"),
        member(b"no array"),
        member(header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}\n")),
        member(header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999,)}\n")),
        member(header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + b"cos\nsystem\n."),
        member(header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n") + bytes(8)),
        member(header(b"(" * 3000)),
        member(header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)}\n") + bytes(8)),
        member(header(b"x" * 900), zipfile.ZIP_LZMA).replace(b"xxx", b"yyy"),
    ],
)
def test_a_damaged_npz_is_one_line(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    if content[:4] == b"PK\x05\x06":
        assert read_npz(tmp_path / "a.npz") == {}
        return
    with pytest.raises(ValueError, match="a.npz cannot be read: "):
        read_npz(tmp_path / "a.npz")


def test_every_flip_in_a_deflated_npz_is_one_line_or_the_same(tmp_path):
    whole = npz(a=np.arange(50), b=np.ones(9, np.float32))
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        try:
            read_npz(io.BytesIO(damaged))
        except ValueError as error:
            assert str(error).startswith("the record cannot be read: ")
