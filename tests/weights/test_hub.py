"""huggingface_hub's answers, without a network."""

import json
import sys
import types

import pytest

from m3ddm_jax.weights import resolve
from m3ddm_jax.weights.hub import fetch


class Unreachable(Exception):
    pass


class Missing(Exception):
    pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A package whose repositories are the folders of tmp_path, and which can be told to fail."""

    def snapshot_download(repository, allow_patterns):
        if package.failure:
            raise package.failure
        package.asked.append((repository, allow_patterns))
        return str(tmp_path / repository)

    errors = types.SimpleNamespace(
        LocalEntryNotFoundError=Unreachable, RepositoryNotFoundError=Missing, GatedRepoError=Missing
    )
    package = types.SimpleNamespace(snapshot_download=snapshot_download, errors=errors, failure=None, asked=[])
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return package


def repository(tmp_path, config):
    folder = tmp_path / "owner/name"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config)
    return folder


def test_a_local_folder_stays_what_it_is(tmp_path):
    assert resolve(tmp_path) == tmp_path
    assert str(resolve("models/m3ddm")) == "models/m3ddm"


def test_a_repository_in_our_layout_is_its_local_copy(hub, tmp_path):
    folder = repository(tmp_path, json.dumps({"kind": "m3ddm"}))
    assert resolve("hf:owner/name") == folder
    [(name, patterns)] = hub.asked
    assert name == "owner/name" and {"weights.safetensors", "image_encoder/*"} <= set(patterns)


@pytest.mark.parametrize("config", ['{"_class_name": "UNet3DConditionModel"}', "[]", "{"])
def test_another_layout_names_the_command(hub, tmp_path, config):
    repository(tmp_path, config)
    with pytest.raises(ValueError, match="python -m m3ddm_jax.convert KIND hf:owner/name FOLDER"):
        resolve("hf:owner/name")


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Unreachable("long\nstory"), r"the hub cannot be reached \(offline\?\), and no copy is kept here$"),
        (Missing("404"), "no such repository"),
        (RuntimeError("read timed out\nat ..."), "cannot be fetched: read timed out$"),
        (KeyError(), "cannot be fetched: KeyError$"),
    ],
)
def test_failures_are_one_clear_line(hub, failure, reason):
    hub.failure = failure
    with pytest.raises(ValueError, match=reason) as error:
        fetch("hf:owner/name", ["config.json"])
    assert str(error.value).startswith("hf:owner/name cannot be fetched: ")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        resolve("hf:owner/name")


def test_the_installed_package_has_what_is_asked_of_it():
    package = pytest.importorskip("huggingface_hub")
    assert callable(package.snapshot_download)
    for name in ("LocalEntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError"):
        assert issubclass(getattr(package.errors, name), Exception)
