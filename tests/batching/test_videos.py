"""The list of a batch: folders, patterns and tables."""

import pytest

from m3ddm_jax.batching.videos import list_jobs

ASPECT = {"aspect": "16:9", "size": None, "pad": None, "anchor": None, "mask": None}
NOTHING = dict.fromkeys(ASPECT)


@pytest.fixture
def clips(tmp_path):
    """Names are all that counts here."""
    for name in ("a.mp4", "b.avi", "deep/a.webm", "deep/10.mov", "deep/9.mov", "frames/0.png", ".hidden.mp4", "x.txt"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).touch()
    return tmp_path / "clips"


def outputs(jobs):
    return [job.output for job in jobs]


def test_a_folder_is_searched_and_its_paths_are_kept(clips):
    jobs = list_jobs(str(clips), "out", ASPECT)
    assert outputs(jobs) == [
        "out/a.mp4",
        "out/b.mp4",
        "out/deep/9.mov",
        "out/deep/10.mov",
        "out/deep/a.webm",
        "out/frames",
    ]
    assert jobs[1].video == str(clips / "b.avi")
    assert all(job.target == {"aspect": 16 / 9} for job in jobs)


def test_a_pattern_lists_what_it_matches(clips):
    assert outputs(list_jobs(f"{clips}/deep/*.mov", "out", ASPECT)) == ["out/10.mov", "out/9.mov"]
    assert outputs(list_jobs(f"{clips}/a.mp4", "out", ASPECT)) == ["out/a.mp4"]
    with pytest.raises(ValueError, match="there is no file, folder or table .*nothing"):
        list_jobs(f"{clips}/nothing*", "out", ASPECT)


def test_a_table_has_its_own_targets_and_the_usual_ones(clips):
    table = clips / "list.csv"
    table.write_text(
        '\ufeffvideo, aspect,anchor,pad,mask\na.mp4,9:16,"0,0.5",,\n\ndeep/9.mov,,,,m.png\n"deep/10.mov",,,"2,0,2,0",\n'
    )
    first, second, third = list_jobs(str(table), "out", {**ASPECT, "anchor": "1,1"})
    assert (first.video, first.output) == (str(clips / "a.mp4"), "out/a.mp4")
    assert first.target == {"aspect": 9 / 16, "anchor": (0.0, 0.5)}
    assert second.target == {"aspect": 16 / 9, "anchor": (1.0, 1.0), "mask": str(clips / "m.png")}
    assert third.target == {"pad": (2, 0, 2, 0)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: columns must be video and any of aspect, size, pad, anchor, mask, found \\[\\]"),
        ("video,ratio\na.mp4,1\n", "line 1: columns .* found \\['video', 'ratio'\\]"),
        ("video,video\na.mp4,b\n", "line 1"),
        ("video,aspect\n", "names no video"),
        ("video,aspect\na.mp4,16:9\n\nb.mp4,wide\n", "line 4: `aspect` must be WIDTH:HEIGHT .* found 'wide'"),
        ("video,aspect\na.mp4,16:9,1\n", "line 2: 2 cells are needed, found 3"),
        ("video,aspect\n,16:9\n", "line 2: no video is named"),
        ("video,aspect\na.mp4,\n", "line 2: one of `aspect`, `size`, `pad` and `mask` is needed, found none"),
        ("video,aspect\na.mp4,1\nx/a.mp4,1\n", "a.mp4 and .*x/a.mp4 would both be written to out/a.mp4"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(clips, text, words):
    (clips / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        list_jobs(str(clips / "list.csv"), "out", NOTHING)


def test_a_table_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bytes.csv").write_bytes(b"video\n\xff\xfe\n")
    for name in ("bytes.csv", "missing.csv"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            list_jobs(str(tmp_path / name), "out", ASPECT)


def test_bad_flags_are_refused_whatever_the_videos(clips):
    with pytest.raises(ValueError, match="^`size` must be WIDTHxHEIGHT"):
        list_jobs(str(clips), "out", {**NOTHING, "size": "big"})
    with pytest.raises(ValueError, match="lies in the source"):
        list_jobs(str(clips), str(clips / "out"), ASPECT)
