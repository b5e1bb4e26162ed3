import os

import pytest

from m3ddm_jax.files.places import check_apart, check_replaceable, mark


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_text("frame")
    (tmp_path / "in.mp4").write_text("video")
    (tmp_path / "link.mp4").symlink_to("in.mp4")
    (tmp_path / "linked").symlink_to("frames")
    os.link(tmp_path / "in.mp4", tmp_path / "hard.mp4")
    os.link(tmp_path / "frames" / "0.png", tmp_path / "hard.png")
    return tmp_path


@pytest.mark.parametrize(
    "output, given, words",
    [
        ("in.mp4", "in.mp4", "is the input"),
        ("frames/../in.mp4", "in.mp4", "is the input"),
        ("link.mp4", "in.mp4", "is the input"),
        ("in.mp4", "link.mp4", "is the input"),
        ("hard.mp4", "in.mp4", "is the input"),
        ("linked", "frames", "is the input"),
        ("frames/out.mp4", "frames", "lies in the input"),
        ("linked/sub/out.mp4", "frames", "lies in the input"),
        ("hard.png", "frames", "lies in the input"),
        ("frames", "frames/0.png", "would replace the input"),
    ],
)
def test_an_output_is_apart_from_inputs(inputs, output, given, words):
    with pytest.raises(ValueError, match=f"the preview .* {words}") as error:
        check_apart([("preview", inputs / output)], [("mask", None), ("input", inputs / given)])
    assert "\n" not in str(error.value)


def test_other_outputs_are_fine(inputs):
    read = [("input", inputs / "in.mp4"), ("mask", inputs / "frames"), ("model", "hf:owner/name")]
    check_apart([("output", inputs / "out.mp4"), ("output", inputs / "frames2"), ("preview", None)], read)


def test_only_what_is_marked_or_empty_is_replaceable(tmp_path):
    check_replaceable(tmp_path / "none")
    check_replaceable(tmp_path)
    (tmp_path / "000000.png").write_text("somebody's")
    with pytest.raises(ValueError, match="name another folder, or delete this one"):
        check_replaceable(tmp_path)
    mark(tmp_path)
    check_replaceable(tmp_path)
