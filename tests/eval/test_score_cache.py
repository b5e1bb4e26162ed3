import numpy as np
import pytest

from eval import score_cache
from eval.score_cache import ScoreCache, fingerprint
from eval.scores import ClipScores


@pytest.fixture
def clip():
    return ClipScores(
        per_frame={"whole_mse": np.array([0.1, np.nan]), "region_lpips": np.array([1.0, 2.0])},
        motion={"flicker_ratio": np.nan, "known_error": 3.0},
        features={"truth": np.arange(4, dtype=np.float32), "output": np.ones(4, np.float32)},
        size=(24, 32),
        picture=np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    )


def test_scores_come_back_as_they_were(tmp_path, clip):
    store = ScoreCache(tmp_path / "clips")
    assert store.load("a.0.25.0", "key") is None
    store.save("a.0.25.0", "key", clip)
    found = store.load("a.0.25.0", "key")
    for group in ("per_frame", "features"):
        for name, values in getattr(clip, group).items():
            np.testing.assert_array_equal(getattr(found, group)[name], values)
    np.testing.assert_equal(found.motion, clip.motion)
    np.testing.assert_array_equal(found.picture, clip.picture)
    assert found.size == (24, 32) and [file.name for file in (tmp_path / "clips").iterdir()] == ["a.0.25.0.npz"]


def test_another_key_and_a_damaged_file_count_as_nothing(tmp_path, clip):
    store = ScoreCache(tmp_path)
    store.save("a", "key", clip)
    assert store.load("a", "other") is None
    path = tmp_path / "a.npz"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole.replace(np.float64(0.1).tobytes(), np.float64(0.2).tobytes())):
        path.write_bytes(damaged)
        assert store.load("a", "key") is None
    path.write_bytes(whole)
    assert store.load("a", "key") is not None


def test_without_a_folder_nothing_is_kept(clip):
    store = ScoreCache(None)
    store.save("a", "key", clip)
    assert store.load("a", "key") is None


def test_fingerprints_tell_contents_and_names_apart(tmp_path):
    for name, data in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(data)
    a, b, c = (score_cache.clip_sha256(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "b" / "0.png").rename(tmp_path / "b" / "1.png")
    assert score_cache.clip_sha256(tmp_path / "b") != a
    assert fingerprint(x=1, y=2) == fingerprint(y=2, x=1) != fingerprint(x=2, y=1)
    assert score_cache.code_sha256() == score_cache.code_sha256()


def test_no_commit_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(score_cache, "_ROOT", tmp_path)
    assert score_cache.code_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert score_cache.code_commit() is None


def test_the_commit_of_a_checkout_and_whether_it_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(score_cache, "_ROOT", tmp_path)
    git = score_cache._git
    git("init", "-q")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-q", "--allow-empty", "-m", "first")
    assert score_cache.code_commit() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").touch()
    assert score_cache.code_commit()["dirty"]
    (tmp_path / "below").mkdir()
    monkeypatch.setattr(score_cache, "_ROOT", tmp_path / "below")
    assert score_cache.code_commit() is None, "somebody else's checkout around it says nothing of this code"
