import hashlib
import io
import urllib.error

import pytest

from m3ddm_jax import convert
from m3ddm_jax.weights import downloads, load_settings

URL = "https://example.org/files/migan_tiny.onnx?download=1"


@pytest.fixture
def onnx(goldens):
    return (goldens / "completion/files/migan_tiny.onnx").read_bytes()


@pytest.fixture
def served(monkeypatch, onnx):
    """The addresses that were asked for, each answered with the file."""
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(onnx)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", answer)
    return asked


def test_an_address_is_converted_with_its_sha256_alone(served, onnx, tmp_path):
    digest = hashlib.sha256(onnx).hexdigest()
    with pytest.raises(ValueError, match="only with the SHA-256 that it must have, `sha256`"):
        convert.convert("migan", URL, tmp_path / "made")
    with pytest.raises(ValueError, match=f"{digest}, expected 00"):
        convert.convert("migan", URL, tmp_path / "made", sha256="00")
    with pytest.raises(ValueError, match="an address goes with KIND lama or migan, found 'raft'"):
        convert.convert("raft", URL, tmp_path / "made")
    assert served == [URL] and not (tmp_path / "made").exists()
    assert convert.convert("migan", URL, tmp_path / "made", sha256=digest.upper()).endswith("migan, 2,177 parameters")
    origin = load_settings(tmp_path / "made")["origin"]
    assert origin == {"source": URL, "licence": "MIT", "sha256": digest.upper()}


def test_a_file_is_pinned_too(goldens, tmp_path):
    with pytest.raises(ValueError, match=r"tiny-lama\.zip has the SHA-256 [0-9a-f]{64}, expected 00"):
        convert.convert("lama", str(goldens / "completion/files/tiny-lama.zip"), tmp_path / "made", sha256="00")
    with pytest.raises(ValueError, match="`net` goes with KIND lpips"):
        convert.convert("lama", "big-lama.zip", tmp_path / "made", net="alex")
    assert not (tmp_path / "made").exists()


def test_an_address_that_does_not_answer_is_told(monkeypatch, tmp_path):
    def fails(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", fails)
    with pytest.raises(ValueError, match="cannot be fetched: Name or service not known"):
        downloads.download(URL, tmp_path, "00")
