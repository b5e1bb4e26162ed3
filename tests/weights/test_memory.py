import resource
import sys

import pytest

from m3ddm_jax.weights import memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine that says nothing yet; returns what writes its files."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_STATM", tmp_path / "statm")
    return lambda name, text: (tmp_path / name).write_text(text)


def test_the_least_of_all_limits_counts(system, monkeypatch):
    assert memory.available_memory() is None
    system("meminfo", "MemTotal:  16000 kB\nMemAvailable:    8000 kB\n")
    assert memory.available_memory() == 8_192_000
    system("memory.stat", "file 77\nanon 1000000\n")
    system("memory.max", "max\n")
    assert memory.available_memory() == 8_192_000
    system("memory.max", "5000000\n")
    assert memory.available_memory() == 4_000_000
    system("statm", "100 3 2 1\n")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3_000_000, 4_000_000))
    assert memory.available_memory() == 3_000_000 - 100 * resource.getpagesize()


def test_what_is_needed_and_what_is_there_are_said(system):
    memory.check_memory("models/a", 1 << 60)  # nobody says what there is
    system("meminfo", "MemAvailable: 3000000 kB\n")
    memory.check_memory("models/a", 3_072_000_000)
    with pytest.raises(ValueError, match=r"models/a need 5\.20 GB of memory, 3\.07 GB are free"):
        memory.check_memory("models/a", 5_197_117_280)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says")
def test_this_machine_says_something_plausible():
    assert 1 << 20 < memory.available_memory() < 1 << 50
