import io
import tarfile

import numpy as np
import pytest

from data import pipeline, reading, sources


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(video_folder, tmp_path):
    """Two tar files, of one and of two videos, with captions."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, names in enumerate((["clip0"], ["clip1", "clip2"])):
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for name in names:
                add(archive, f"{name}.mp4", (video_folder / f"{name}.mp4").read_bytes())
                add(archive, f"{name}.txt", b"a caption")
    return folder


def test_videos_in_tar_files_are_read_by_name(tars, video_folder):
    source = sources.open_source("webdataset", tars, split="all")
    names = ["part-0.tar/clip0.mp4", "part-1.tar/clip1.mp4", "part-1.tar/clip2.mp4"]
    assert [source.name(index) for index in range(len(source))] == names
    video = source.open(2)
    expected = reading.read_media(video_folder / "clip2.mp4", [5, 1])
    assert video.info.num_frames == 28 and (video.read([5, 1]) == expected).all()
    source.check_storage(2)
    train, held_out = (sources.open_source("webdataset", tars, split=split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (2, 1) and not {train.name(0), train.name(1)} & {held_out.name(0)}


def test_tar_files_feed_the_pipeline(tars):
    batches = pipeline.make_batches(
        [("webdataset", str(tars), 1.0, "all")], batch_size=3, num_frames=2, buckets=((16, 16),), global_frames=2,
        global_size=8, max_interval=2, seed=0, num_threads=1,
    )  # fmt: skip
    batch = next(iter(batches))
    assert batch["video"].shape == (3, 2, 16, 16, 3)
    assert {name.split("@")[0].split("/")[1] for name in batch["clip_id"]} == {"clip0.mp4", "clip1.mp4", "clip2.mp4"}


def test_tar_files_that_cannot_be_used_are_refused(tmp_path, tars):
    with pytest.raises(ValueError, match="holds no tar file with videos"):
        sources.open_source("webdataset", tmp_path / "nothing")
    (tars / "part-2.tar").write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(ValueError, match=r"part-2\.tar is no tar file that can be read"):
        sources.open_source("webdataset", tars)
