import errno
import os
import subprocess
import sys
import time

import pytest

from m3ddm_jax.files import writing
from m3ddm_jax.files.writing import bring_along, clean, new_file, new_folder, place, recover, write_file

DEAD = 2**22  # above the largest process number of Linux


def leftover(folder, name, kind="part", owner=None):
    path = folder / f".{name}.{owner or place()}-{DEAD}-01234567.{kind}"
    path.mkdir()
    (path / "new").write_text("half")
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    write_file(path, "old")
    with pytest.raises(KeyError), new_file(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["a"]
    write_file(path, b"new")
    assert path.read_text() == "new" and names(tmp_path) == ["a"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with new_file(tmp_path / "a") as first, new_file(tmp_path / "a") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a").read_text() in "12" and names(tmp_path) == ["a"]


def test_a_link_is_followed_and_stays(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_long_name_has_a_temporary_one(tmp_path):
    write_file(tmp_path / ("ä" * 127), "x")
    assert names(tmp_path) == ["ä" * 127]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a"
    for content in ("old", "new"):
        with new_folder(path) as part:
            (part / content).write_text(content)
    assert names(path) == ["new"] and names(tmp_path) == ["a"]
    with pytest.raises(FileExistsError), new_folder(path, replace=False):
        pass
    assert names(path) == ["new"] and names(tmp_path) == ["a"]


def test_what_a_new_folder_lacks_is_brought_along(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "sub").mkdir(parents=True)
    (old / "sub" / "a").write_text("a")
    (old / "b").write_text("old")
    (old / "c").write_text("c")
    (old / "link").symlink_to("b")
    new.mkdir()
    (new / "b").write_text("new")
    bring_along(old, new, besides=("c",))
    assert names(new) == ["b", "link", "sub"] and (new / "b").read_text() == "new"
    assert (new / "sub" / "a").read_text() == "a" and (new / "link").is_symlink()


@pytest.mark.parametrize("moment", ["rename", "remove"])
def test_a_process_that_dies_between_two_renames_loses_nothing(tmp_path, moment):
    """Killed after the old folder was moved aside, and after the new one took its place."""
    code = f"""
import os, pathlib
from m3ddm_jax.files import writing
with writing.new_folder({str(tmp_path / "a")!r}) as part:
    (part / "old").write_text("")
rename, moved = pathlib.Path.rename, []
def dying_rename(path, target):
    if moved: os._exit(9)
    moved.append(path)
    return rename(path, target)
if {moment == "rename"}:
    pathlib.Path.rename = dying_rename
else:
    writing.remove = lambda path: os._exit(9)
with writing.new_folder({str(tmp_path / "a")!r}) as part:
    (part / "new").write_text("")
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    recover(tmp_path / "a")
    assert names(tmp_path / "a") == (["old"] if moment == "rename" else ["new"])
    with new_folder(tmp_path / "b"):
        pass
    assert names(tmp_path) == ["a", "b"], "leftovers are removed at the next start"


def test_leftovers_go_by_owner_and_age(tmp_path, monkeypatch):
    dead, foreign = leftover(tmp_path, "a"), leftover(tmp_path, "b", owner="0" * 8)
    own = tmp_path / f".c.{place()}-{os.getpid()}-01234567.part"
    own.write_text("in use")
    stranger = tmp_path / ".d.part"
    stranger.write_text("somebody's")
    clean(tmp_path)
    assert not dead.exists() and foreign.exists() and own.exists() and stranger.exists()
    tomorrow = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    clean(tmp_path)
    assert not foreign.exists() and stranger.exists()


def test_a_folder_that_is_aside_stays_while_nothing_has_its_place(tmp_path):
    aside = leftover(tmp_path, "a", "old")
    clean(tmp_path)
    assert aside.exists()
    recover(tmp_path / "a")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["new"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    write_file(tmp_path / "a", "old")
    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]
