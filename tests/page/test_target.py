"""The picture of the canvas, and what the page says of a video."""

import re

import numpy as np
import pytest

from m3ddm_jax.geometry import Canvas
from m3ddm_jax.page import views
from m3ddm_jax.page.jobs import Progress
from m3ddm_jax.page.target import Video, describe, draw
from m3ddm_jax.page.work import Result
from m3ddm_jax.video import FrameSink


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "in.mp4"
    with FrameSink(path, 24, 32, 48) as sink:
        sink.write(np.zeros((12, 32, 48, 3), np.uint8))
    return Video.open(path)


def test_the_picture_shows_where_the_source_lies(video):
    picture = draw(video, Canvas.from_pad(32, 48, 10, 0, 6, 4))
    assert 'viewBox="0 0 64 36"' in picture
    assert re.search(r'<image [^>]* x="10" y="0" width="48" height="32"', picture)
    assert 'data-room-x="16" data-room-y="4"' in picture
    assert "48x32 to 64x36, adds 10 left, 6 right, 4 bottom" in picture


def test_a_canvas_that_adds_nothing_says_so():
    assert describe(Canvas.from_size(32, 48, 32, 48)).endswith("adds nothing")


def test_facts_of_a_video(video):
    assert video.facts() == "in.mp4: 48x32, 12 frames, 0.5 s"


def test_a_file_that_is_no_video_is_rejected(tmp_path):
    (tmp_path / "in.mp4").write_text("no video")
    with pytest.raises(ValueError, match="no readable video"):
        Video.open(tmp_path / "in.mp4")


def test_problems_hide_folders_and_markup(tmp_path):
    path = tmp_path / "<b>.mp4"
    shown = views.problem(ValueError(f"{path} is no\nreadable `video`"), path)
    assert "&lt;b&gt;.mp4 is no readable video" in shown
    assert str(tmp_path) not in shown


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress("waiting", waiting_for=1), "Waiting for 1 other video."),
        (Progress("running", elapsed=3.2), "Starting, 3 s"),
        (Progress("running", done=3, total=12, left=7.6), "Frame 3 of 12, about 8 s left"),
        (Progress("stopping", done=3, total=12), "Cancelling"),
        (Progress("cancelled"), "Cancelled"),
    ],
)
def test_status_of_a_job(progress, text):
    assert text in views.status(progress)


def test_the_player_shows_both_at_one_scale(tmp_path):
    result = Result(tmp_path / "out.mp4", tmp_path / "a b.mp4", tmp_path / "out.mp4", ())
    shown = views.player(result, Canvas.from_pad(32, 48, 10, 0, 6, 4), 1.0)
    assert "flex: 48 1 0" in shown and "flex: 64 1 0" in shown
    assert "a%20b.mp4" in shown
