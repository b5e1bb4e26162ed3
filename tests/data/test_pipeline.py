import collections
import logging
import shutil
import threading
import time

import numpy as np
import pytest
from absl import flags

from data import clips, masks, pipeline
from data import sources as sources_module

SETTINGS = {
    "batch_size": 4,
    "num_frames": 3,
    "buckets": ((16, 24), (24, 16), (16, 16)),
    "global_frames": 2,
    "global_size": 8,
    "max_interval": 3,
    "seed": 7,
    "num_threads": 2,
}


def batches(sources, count, start=0, **more):
    iterator = iter(pipeline.make_batches(sources, **(SETTINGS | more)))
    iterator.set_state({"next_index": start})
    found = [next(iterator) for _ in range(count)]
    iterator.close()
    return found


def same(left, right):
    assert left.keys() == right.keys()
    return all((left[key] == right[key]).all() for key in left)


@pytest.fixture(scope="module")
def sources(video_folder):
    return [("videos", str(video_folder), 1.0, "all"), ("synthetic", "", 1.0)]


@pytest.fixture(scope="module")
def whole(sources):
    return batches(sources, 4)


def test_batches_have_the_documented_shapes_and_types(whole):
    for step, batch in enumerate(whole):
        height, width = pipeline.bucket_of_step(7, step, SETTINGS["buckets"])
        expected = {
            "video": ((4, 3, height, width, 3), np.uint8),
            "mask": ((4, 3, height, width, 1), np.uint8),
            "known": ((4, 4), np.int32),
            "global_frames": ((4, 2, 8, 8, 3), np.uint8),
            "fps": ((4,), np.float32),
        }
        assert {key: (batch[key].shape, batch[key].dtype) for key in expected} == expected
        assert batch["clip_id"].shape == (4,) and batch["clip_id"].dtype.kind == "U"
        assert batch.keys() == expected.keys() | {"clip_id"}
        assert batch["mask"].max() == 1 and (batch["fps"] > 0).all()
        for (top, bottom, left, right), mask in zip(batch["known"], batch["mask"], strict=True):
            assert 0 <= top < bottom <= height and 0 <= left < right <= width
            assert mask.all(axis=(1, 2, 3)).any() or not mask[:, top:bottom, left:right].any()


def test_the_bucket_is_a_function_of_seed_and_step():
    buckets = SETTINGS["buckets"]
    drawn = [pipeline.bucket_of_step(7, step, buckets) for step in range(300)]
    assert drawn == [pipeline.bucket_of_step(7, step, buckets) for step in range(300)]
    assert drawn != [pipeline.bucket_of_step(8, step, buckets) for step in range(300)]
    counts = collections.Counter(drawn)
    assert set(counts) == set(buckets)
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) < 13.82


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(sources, whole, process_count):
    parts = [
        batches(sources, 3, process_index=index, process_count=process_count, num_threads=1 + index)
        for index in range(process_count)
    ]
    for step in range(3):
        joined = {key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}
        assert same(joined, whole[step])


def test_an_iterator_resumes_at_the_step_it_is_given(sources, whole):
    iterator = iter(pipeline.make_batches(sources, **SETTINGS))
    assert iterator.get_state() == {"next_index": 0}
    assert same(next(iterator), whole[0])
    assert same(next(iterator), whole[1])
    assert iterator.get_state() == {"next_index": 2}
    iterator.set_state({"next_index": 3})
    assert same(next(iterator), whole[3])
    assert iterator.get_state() == {"next_index": 4}
    assert same(batches(sources, 1, start=1)[0], whole[1])
    far = batches(sources, 1, start=10**9)[0]
    assert far["video"].shape[0] == 4


@pytest.fixture
def parsed_flags():
    """Grain reads its flags where there are workers."""
    flags.FLAGS.mark_as_parsed()
    yield
    flags.FLAGS.unparse_flags()


@pytest.mark.usefixtures("parsed_flags")
@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_is_the_same_with_worker_processes(sources, whole, workers):
    found = batches(sources, 2, start=1, workers=workers, num_threads=1)
    assert same(found[0], whole[1]) and same(found[1], whole[2])


@pytest.mark.usefixtures("parsed_flags")
def test_what_a_worker_raises_is_raised_here(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"unusable, the last is text\.mp4"):
        batches([("videos", str(tmp_path), 1.0)], 1, workers=1)


def test_the_next_batch_can_be_looked_at(sources, whole):
    iterator = iter(pipeline.make_batches(sources, **SETTINGS))
    assert same(iterator.peek(), whole[0]) and same(iterator.peek(), whole[0])
    assert iterator.get_state() == {"next_index": 0}
    assert same(next(iterator), whole[0]) and same(next(iterator), whole[1])
    iterator.close()


def test_the_seed_changes_the_clips(sources, whole):
    assert not same(batches(sources, 1, seed=8)[0], whole[0])


def test_sources_are_mixed_by_their_weights(video_folder):
    sources = [("videos", str(video_folder), 3.0, "all"), ("synthetic", "", 1.0)]
    opened = [pipeline.open_source(kind, path, lines=20, split="all") for kind, path, *_ in sources]
    order = pipeline.record_order(opened, [weight for _, _, weight, *_ in sources], seed=0, shuffle=True)
    records = [order[index] for index in range(400)]
    assert sum(record.source == 0 for record in records) == 300
    synthetic = [record.index for record in records if record.source == 1]
    assert len(set(synthetic)) == len(synthetic)


def test_every_epoch_holds_each_video_once_in_a_new_order(video_folder):
    source = pipeline.open_source("videos", video_folder, split="all")
    order = pipeline.record_order([source], [1.0], seed=3, shuffle=True)
    epochs = [tuple(order[4 * epoch + index].index for index in range(4)) for epoch in range(12)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len(set(epochs)) > 4
    plain = pipeline.record_order([source], [1.0], seed=3, shuffle=False)
    assert [plain[index].index for index in range(8)] == [0, 1, 2, 3] * 2


def test_bad_videos_are_replaced_counted_and_named_once(video_folder, tmp_path, caplog):
    shutil.copytree(video_folder, tmp_path / "mixed")
    sources = [("videos", str(tmp_path / "mixed"), 1.0, "all")]
    (tmp_path / "mixed" / "clip0.mp4").write_text("no video")
    truncated = (video_folder / "clip2.mp4").read_bytes()[:2000]
    (tmp_path / "mixed" / "clip2.mp4").write_bytes(truncated)
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = batches(sources, 5)
    names = {clip_id.split("@")[0] for batch in found for clip_id in batch["clip_id"]}
    assert names == {"clip1.mp4", "frames"}
    warnings = [record.getMessage() for record in caplog.records if "skipped video" in record.getMessage()]
    assert sorted(message.split(":")[0] for message in warnings) == [
        "skipped video clip0.mp4",
        "skipped video clip2.mp4",
    ]
    assert "2 skipped so far" in warnings[-1]
    again = batches(sources, 1, start=4)[0]
    assert same(again, found[4]), "the substitute does not depend on what was read before"


@pytest.fixture
def storage(monkeypatch):
    """Function (failures of opening, failures of reading through): a storage that fails and comes back."""

    assert sum(pipeline.WAITS) == 180
    monkeypatch.setattr(pipeline, "WAITS", (0.001,) * 8)

    def fail(openings, readings):
        index_video, read_through = sources_module.index_video, sources_module.read_through
        left = {"opening": openings, "reading": readings}

        def failing(name, function):
            def call(path):
                if left[name] > 0:
                    left[name] -= 1
                    raise ConnectionResetError(104, "Connection reset by peer")
                return function(path)

            return call

        monkeypatch.setattr(sources_module, "index_video", failing("opening", index_video))
        monkeypatch.setattr(sources_module, "read_through", failing("reading", read_through))

    return fail


@pytest.mark.parametrize("readings", [0, 5])
def test_a_storage_that_fails_for_a_while_loses_no_clip(video_folder, storage, caplog, readings):
    folder = [("videos", str(video_folder), 1.0, "all")]
    expected = batches(folder, 3, num_threads=1)
    storage(2, readings)
    with caplog.at_level(logging.WARNING, logger="absl"):
        found = batches(folder, 3, num_threads=1)
    assert all(map(same, found, expected))
    said = [record.getMessage() for record in caplog.records]
    assert sum("cannot be reached, waiting: " in line for line in said) == readings
    assert not any("skipped" in line for line in said)


def test_a_storage_that_stays_away_ends_the_run_in_one_line(video_folder, storage):
    storage(10**6, 10**6)
    with pytest.raises(pipeline.Unreachable, match=r"storage of \w+.* has not answered for 0.* s: .*reset by peer"):
        batches([("videos", str(video_folder), 1.0, "all")], 1, num_threads=1)


def test_a_video_that_vanishes_is_waited_for_and_not_replaced(video_folder, tmp_path, storage):
    shutil.copytree(video_folder, tmp_path / "videos")
    storage(0, 0)
    source = ("videos", str(tmp_path / "videos"), 1.0, "all")
    data = iter(pipeline.make_batches([source], **SETTINGS))
    shutil.rmtree(tmp_path / "videos")
    with pytest.raises(pipeline.Unreachable, match="has not answered for .*No such file"):
        next(data)


def test_nothing_waits_for_a_storage_once_loading_has_ended(video_folder, tmp_path, caplog):
    before = set(threading.enumerate())
    shutil.copytree(video_folder, tmp_path / "videos")
    data = iter(pipeline.make_batches([("videos", str(tmp_path / "videos"), 1.0, "all")], **SETTINGS))
    next(data)
    shutil.rmtree(tmp_path / "videos")
    with caplog.at_level(logging.WARNING, logger="absl"):
        while not caplog.records:
            time.sleep(0.01)
        data.close()
    threads = set(threading.enumerate()) - before
    for thread in threads:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in threads)


def test_neighbours_of_a_large_source_do_not_meet_in_a_batch_more_often_than_by_chance():
    total, batch, reach = 10_700_000, 256, 50
    order = pipeline.record_order([range(total)], [1.0], seed=7, shuffle=True)
    drawn = np.sort([[order[step * batch + place].index for place in range(batch)] for step in range(50)])
    by_chance = drawn.size * batch * reach / total  # 15
    assert (np.diff(drawn) < reach).sum() < 2.5 * by_chance


def test_a_source_without_a_usable_video_raises(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"unusable, the last is text\.mp4"):
        batches([("videos", str(tmp_path), 1.0)], 1)


def test_one_frame_and_one_colour(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "1.png"), np.full((20, 30, 3), (30, 90, 200), np.uint8))
    batch = batches([("videos", str(tmp_path), 1.0)], 1, num_frames=1)[0]
    assert (batch["video"] == (200, 90, 30)).all() and (batch["global_frames"] == (200, 90, 30)).all()
    assert batch["mask"].any(axis=(1, 2, 3, 4)).all()


def test_mask_settings_reach_the_batch(sources):
    sampler = masks.MaskSampler(
        four=0, single=0, horizontal=0, vertical=0, random=0, all=1, all_masked=1, ends_known=0, random_known=0
    )
    assert batches(sources, 1, masks=sampler)[0]["mask"].all()


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"process_count": 3},
        {"process_index": 1},
        {"num_frames": 0},
        {"buckets": ()},
        {"buckets": ((2, 16),)},
        {"max_interval": 0},
        {"num_threads": 0},
        {"workers": -1},
        {"references": -1},
        {"global_fit": "crop"},
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(sources, change):
    with pytest.raises(ValueError):
        pipeline.make_batches(sources, **(SETTINGS | change))


def test_references_follow_the_clip_and_change_nothing_of_it(sources, whole):
    sampler = masks.MaskSampler(all_masked=1, ends_known=0, random_known=0)
    plain, found = (batches(sources, 1, masks=sampler, references=count)[0] for count in (0, 2))
    assert found["video"].shape[1] == found["mask"].shape[1] == 5
    assert (found["video"][:, :3] == plain["video"]).all() and (found["clip_id"] == plain["clip_id"]).all()
    assert (found["mask"] == found["mask"][:, :1]).all(), "one mask a clip"
    assert all((found["video"][:, 3:] != plain["video"][:, index, None]).any() for index in range(3))


def test_global_frames_are_padded_where_that_is_asked(sources, whole):
    padded = batches(sources, 1, global_fit="pad")[0]
    assert (padded["known"] == whole[0]["known"]).all() and (padded["video"] == whole[0]["video"]).all()
    for (top, bottom, left, right), frames in zip(padded["known"], padded["global_frames"], strict=True):
        height, width = clips.fitted_size(bottom - top, right - left, 8)
        assert max(height, width) == 8 and not frames[:, height:].any() and not frames[:, :, width:].any()
        assert frames[:, :height, :width].any(axis=(1, 2, 3)).all()


def test_sources_without_weight_are_refused():
    for sources in ([], [("synthetic", "", 0.0)]):
        with pytest.raises(ValueError, match="positive weight"):
            pipeline.make_batches(sources, **SETTINGS)
