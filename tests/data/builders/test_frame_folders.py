import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import sources, splits
from data.builders import davis, youtube_vos


def write_images(folder, numbers, suffix):
    folder.mkdir(parents=True)
    for number in numbers:
        cv2.imwrite(str(folder / f"{number:05d}{suffix}"), np.full((6, 10, 3), number, np.uint8))


@pytest.fixture
def davis_root(tmp_path):
    root = tmp_path / "DAVIS"
    for name, count in (("bear", 3), ("camel", 2), ("judo", 4)):
        write_images(root / "JPEGImages/480p" / name, range(count), ".jpg")
    write_images(root / "Annotations/480p/bear", range(3), ".png")
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/train.txt").write_text("bear\ncamel\n")
    (root / "ImageSets/2017/val.txt").write_text("judo\n")
    return root


def read(builder, split):
    records = builder.as_data_source(split=split)
    return {record["name"].decode(): record for record in (records[i] for i in range(len(records)))}


def built(builder):
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return builder


def test_davis_keeps_the_files_as_they_are(davis_root, tmp_path):
    builder = built(davis.Davis(davis_root, data_dir=tmp_path))
    train, val = read(builder, "train"), read(builder, "val")
    assert sorted(train) == ["bear", "camel"] and list(val) == ["judo"]
    bear = train["bear"]
    assert (bear["num_frames"], bear["height"], bear["width"]) == (3, 6, 10)
    for place, (frame, mask) in enumerate(zip(bear["frames"], bear["masks"], strict=True)):
        assert frame == (davis_root / f"JPEGImages/480p/bear/{place:05d}.jpg").read_bytes()
        assert mask == (davis_root / f"Annotations/480p/bear/{place:05d}.png").read_bytes()
    assert len(val["judo"]["frames"]) == 4 and len(val["judo"]["masks"]) == 0


def test_data_sets_of_frames_are_sources_of_training(davis_root, tmp_path):
    built(davis.Davis(davis_root, data_dir=tmp_path / "made"))
    folder = next((tmp_path / "made").glob("davis/*"))
    names = {
        split: {source.open(index).name for index in range(len(source))}
        for split in splits.SPLITS
        for source in [sources.open_source("shards", folder, split=split)]
    }
    assert names == {"train": {"bear", "camel"}, "validation": {"judo"}, "all": {"bear", "camel", "judo"}}
    video = sources.open_source("shards", folder, split="validation").open(0)
    assert video.info == (4, 24.0, 6, 10) and video.part is None
    assert [frame.mean().round() for frame in video.read([3, 1])] == [3, 1]
    assert video.read([2], (12, 20)).shape == (1, 12, 20, 3)


def test_davis_lists_what_a_folder_lacks(davis_root, tmp_path):
    (davis_root / "ImageSets/2017/val.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks .*Full-Resolution, .*val\.txt"):
        davis.Davis(davis_root, data_dir=tmp_path, resolution="Full-Resolution")


def test_a_listed_clip_without_frames_is_named(davis_root, tmp_path):
    (davis_root / "ImageSets/2017/val.txt").write_text("nowhere\n")
    with pytest.raises(ValueError, match="nowhere holds no images"):
        davis.Davis(davis_root, data_dir=tmp_path).download_and_prepare()


def test_youtube_vos_has_masks_of_some_frames(tmp_path):
    root = tmp_path / "YouTubeVOS"
    write_images(root / "train_all_frames/JPEGImages/003234408d", range(6), ".jpg")
    write_images(root / "train_all_frames/Annotations/003234408d", (0, 5), ".png")
    write_images(root / "test/JPEGImages/0070461469", (0, 5, 10), ".jpg")
    builder = built(youtube_vos.YoutubeVos(root, data_dir=tmp_path))
    assert sorted(builder.info.splits) == ["test", "train_all_frames"]
    clip = read(builder, "train_all_frames")["003234408d"]
    assert clip["annotated"] == [0, 5] and len(clip["masks"]) == 2 and clip["num_frames"] == 6
    assert read(builder, "test")["0070461469"]["num_frames"] == 3


def test_youtube_vos_refuses_other_folders_and_masks_of_no_frame(tmp_path):
    with pytest.raises(ValueError, match="none of train, valid"):
        youtube_vos.YoutubeVos(tmp_path, data_dir=tmp_path)
    write_images(tmp_path / "train/JPEGImages/a", (0, 5), ".jpg")
    write_images(tmp_path / "train/Annotations/a", (3,), ".png")
    with pytest.raises(ValueError, match=r"masks of no frame of .*: 00003\.png"):
        youtube_vos.YoutubeVos(tmp_path, data_dir=tmp_path).download_and_prepare()
