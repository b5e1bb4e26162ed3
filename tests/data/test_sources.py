import shutil

import cv2
import numpy as np
import pytest

from data import reading, sources
from m3ddm_jax.video.timeline import DEFAULT_FPS


def test_a_folder_lists_videos_and_frame_folders_by_name(video_folder, tmp_path):
    source = sources.open_source("videos", video_folder, split="all")
    assert [source.name(index) for index in range(len(source))] == ["clip0.mp4", "clip1.mp4", "clip2.mp4", "frames"]
    nested = tmp_path / "a" / "b"
    nested.mkdir(parents=True)
    for name in ("clip10.mp4", "clip2.MP4"):
        shutil.copy(video_folder / "clip0.mp4", nested / name)
    cv2.imwrite(str(nested / "poster.png"), np.zeros((4, 4, 3), np.uint8))  # beside videos: no frame folder
    (nested / "notes.txt").touch()
    source = sources.open_source("videos", tmp_path, split="all")
    assert [source.name(index) for index in range(len(source))] == ["a/b/clip2.MP4", "a/b/clip10.mp4"]


def test_videos_and_frame_folders_read_alike(video_folder, moving_frames):
    source = sources.open_source("videos", video_folder, split="all")
    video = source.open(1)
    assert video.info == (24, 24.0, 32, 48)
    assert np.abs(video.read([5, 2]).astype(int) - moving_frames(24, seed=1)[[5, 2]]).mean() < 4
    folder = source.open(3)
    assert folder.info == (12, DEFAULT_FPS, 32, 48)
    assert (folder.read([11, 0]) == moving_frames(12, seed=9)[[11, 0]]).all(), "natural order, exact pixels"
    assert folder.read([3], (16, 20)).shape == (1, 16, 20, 3)


def test_synthetic_scenes_are_videos_of_the_size_asked_and_of_many_aspects():
    source = sources.open_source("synthetic", lines=20)
    shapes = set()
    for index in range(6):
        info = source.open(index).info
        assert min(info.height, info.width) == 20 and max(info.height, info.width) <= 36
        shapes.add((info.height, info.width))
    assert len(shapes) > 3
    video = source.open(5)
    whole = video.read(range(4))
    assert whole.shape == (4, video.info.height, video.info.width, 3)
    assert (source.open(5).read([3, 1]) == whole[[3, 1]]).all()
    assert video.read([0], (10, 12)).shape == (1, 10, 12, 3)


def test_frame_folders_that_cannot_be_used_say_why(tmp_path):
    for name, shape in (("1.png", (8, 8, 3)), ("2.png", (8, 10, 3))):
        cv2.imwrite(str(tmp_path / name), np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="must all be 8x8"):
        reading.read_media(tmp_path, [0, 1])
    (tmp_path / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"1\.png is no readable image"):
        sources.index_video(tmp_path)


def test_unusable_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown source kind 'tape', known: shards, webdataset, videos, synthetic"):
        sources.open_source("tape", tmp_path)
    with pytest.raises(ValueError, match="holds no video"):
        sources.open_source("videos", tmp_path, split="all")
    with pytest.raises(ValueError, match="not a folder"):
        sources.open_source("videos", tmp_path / "missing")
    with pytest.raises(ValueError, match="no shards"):
        sources.open_source("shards", tmp_path)
