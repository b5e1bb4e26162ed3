import json
import subprocess

from m3ddm_jax.training import record


def test_every_start_has_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "code_commit", lambda: "abc")
    record.note_start(tmp_path, 0, {"train": {"steps": 4}})
    record.note_start(tmp_path, 2, {"train": {"steps": 8}})
    first, second = map(json.loads, (tmp_path / record.STARTS).read_text().splitlines())
    assert (first["step"], second["step"]) == (0, 2) and second["config"]["train"]["steps"] == 8
    assert first["commit"] == "abc" and first["versions"]["jax"] and "cpu" in first["devices"]


def test_the_commit_is_that_of_the_checkout_and_says_where_files_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_ROOT", tmp_path.resolve())
    assert record.code_commit() is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    commit = record.code_commit()
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert record.code_commit() == f"{commit}+"
