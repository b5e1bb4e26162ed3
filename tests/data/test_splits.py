import collections

import pytest

from data import reading, sources, splits


def test_two_percent_of_many_names_are_held_out_by_their_hash_alone():
    names = [f"folder/video{number}.mp4" for number in range(5000)]
    held_out = splits.names_of_split(names, "validation")
    assert 60 <= len(held_out) <= 140
    assert held_out == [name for name in splits.names_of_split(names[::-1], "validation")[::-1]]
    kept = splits.names_of_split(names, "train")
    assert set(kept) | set(held_out) == set(names) and not set(kept) & set(held_out)
    assert splits.names_of_split(names, "all") == names
    more = splits.names_of_split([*names, "another.mp4"], "validation")
    assert set(held_out) <= set(more), "a video that comes later moves no other"


def test_at_least_one_of_several_is_held_out_and_never_a_single_one():
    for count in (2, 3, 10):
        names = [f"{number}.mp4" for number in range(count)]
        assert splits.names_of_split(names, "validation") == [splits.by_hash(names)[0]]
    assert splits.names_of_split(["a.mp4"], "train") == ["a.mp4"] and not splits.names_of_split(["a.mp4"], "validation")
    with pytest.raises(ValueError, match="split 'test' is unknown: one of train, validation, all is accepted"):
        splits.names_of_split(["a.mp4"], "test")


def test_folders_and_scenes_hold_videos_out(video_folder, tmp_path):
    for kind, path in (("videos", video_folder), ("synthetic", ""), ("synthetic", "visits")):
        opened = {split: sources.open_source(kind, path, split=split) for split in splits.SPLITS}
        ends = {
            split: {source.name(index) for index in (0, len(source) // 2, len(source) - 1)}
            for split, source in opened.items()
        }
        assert not ends["train"] & ends["validation"]
        assert len(opened["train"]) + len(opened["validation"]) == len(opened["all"])
    assert collections.Counter(map(len, (opened["train"], opened["validation"]))) == {1_000_000: 1, 20_000: 1}
    (tmp_path / "one.mp4").touch()
    with pytest.raises(reading.NoSuchSplit, match="holds one video: none is of the split validation"):
        sources.open_source("videos", tmp_path, split="validation")
