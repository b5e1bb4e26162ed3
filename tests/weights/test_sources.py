import pytest

from m3ddm_jax.weights import hub
from m3ddm_jax.weights.sources import find_file


def test_the_first_name_that_is_there(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("c.bin", "sub/b.bin"):
        (tmp_path / name).write_text("")
    assert find_file(tmp_path, ["a.bin", "sub/b.bin", "c.bin"]) == tmp_path / "sub/b.bin"
    assert find_file(tmp_path / "c.bin", ["a.bin"]) == tmp_path / "c.bin"
    with pytest.raises(ValueError, match="has none of a.bin, d.bin"):
        find_file(tmp_path, ["a.bin", "d.bin"])


def test_of_the_hub_one_name_after_the_other(tmp_path, monkeypatch):
    (tmp_path / "b.bin").write_text("")
    asked = []

    def fetch(source, patterns):
        asked.append((source, patterns))
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    assert find_file("hf:OWNER/NAME", ["a.bin", "b.bin", "c.bin"], ["config.json"]) == tmp_path / "b.bin"
    assert asked == [("hf:OWNER/NAME", ["a.bin", "config.json"]), ("hf:OWNER/NAME", ["b.bin", "config.json"])]
