import collections
import io
import itertools
import json
import os
import time

import numpy as np
import pytest

from data import latents
from data.sources import SourceSpec

BUCKETS = ((16, 24), (16, 16))
FACTS = {"buckets": BUCKETS, "examples": 11, "examples_per_shard": 4}


def example(number, bucket):
    value = np.full((2, bucket[1] // 8), number, np.float16)
    return {"latents_mean": value, "fps": np.float32(number), "clip_id": np.str_(f"clip {number}")}


def write_folder(folder, facts=FACTS, leave_out=()):
    latents.write_facts(folder, facts)
    for shard in latents.plan_shards(facts["buckets"], facts["examples"], facts["examples_per_shard"]):
        if shard.name not in leave_out:
            numbers = range(shard.first, shard.first + shard.count)
            latents.write_shard(folder, shard, (example(number, shard.bucket) for number in numbers))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Examples 0 to 5 of 16 x 24 pixels, 8 to 12 of 16 x 16."""
    return write_folder(tmp_path_factory.mktemp("latents") / "folder")


def batches(sources, count, start=0, **more):
    settings = {"batch_size": 2, "buckets": BUCKETS, "seed": 3, "num_threads": 2} | more
    iterator = iter(latents.make_latent_batches(sources, **settings))
    iterator.set_state({"next_index": start})
    found = list(itertools.islice(iterator, count))
    iterator.close()
    return found


def same(left, right):
    return left.keys() == right.keys() and all((left[key] == right[key]).all() for key in left)


def test_a_plan_parts_the_examples_over_the_buckets_and_none_comes_twice():
    shards = latents.plan_shards(BUCKETS, 11, 4)
    assert [shard.name for shard in shards] == [
        f"16x{width}-0000{index}-of-00002.array_record" for width in (24, 16) for index in range(2)
    ]
    assert [(shard.bucket, shard.first, shard.count) for shard in shards] == [
        ((16, 24), 0, 4),
        ((16, 24), 4, 2),
        ((16, 16), 8, 4),
        ((16, 16), 12, 1),
    ]
    with pytest.raises(ValueError, match="1 examples in shards of 4 for 2 buckets: too few"):
        latents.plan_shards(BUCKETS, 1, 4)


def test_records_come_back_as_they_were_written(folder):
    opened = latents.LatentFolder(folder)
    assert opened.facts == json.loads(json.dumps(FACTS))
    records = opened.bucket((16, 16))
    assert len(records) == 5
    for index, number in enumerate(range(8, 13)):
        record, expected = records[index], example(number, (16, 16))
        assert same(record, expected)
        assert {key: value.dtype for key, value in record.items()} == {
            key: value.dtype for key, value in expected.items()
        }
    with pytest.raises(ValueError, match="has no examples of 32 x 32 pixels"):
        opened.bucket((32, 32))


def test_every_epoch_of_a_bucket_holds_each_example_once_in_a_new_order(folder):
    found = batches([(str(folder), 1.0)], 60)
    assert {batch["latents_mean"].shape for batch in found} == {(2, 2, 3), (2, 2, 2)}
    for width, numbers in ((24, range(6)), (16, range(8, 13))):
        drawn = [int(fps) for batch in found if batch["latents_mean"].shape[2] == width // 8 for fps in batch["fps"]]
        assert len(drawn) == 60, "the buckets take turns"
        epochs = [tuple(drawn[start : start + len(numbers)]) for start in range(0, 60, len(numbers))]
        assert all(sorted(epoch) == list(numbers) for epoch in epochs)
        assert len(set(epochs)) > len(epochs) // 2


def test_a_batch_is_a_function_of_seed_and_step_for_any_number_of_processes(folder):
    sources = [(str(folder), 1.0)]
    whole = batches(sources, 6)
    parts = [batches(sources, 6, process_index=index, process_count=2, num_threads=1 + index) for index in range(2)]
    for step in range(6):
        assert same({key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}, whole[step])
    assert same(batches(sources, 1, start=4)[0], whole[4])
    assert not all(same(*pair) for pair in zip(batches(sources, 6, seed=4), whole, strict=True))


def test_folders_are_mixed_by_their_weights(folder, tmp_path):
    other = write_folder(tmp_path / "other", FACTS | {"examples": 40})
    found = batches([(str(folder), 3.0), (str(other), 1.0)], 100)
    assert {int(fps) for batch in found for fps in batch["fps"]} == {*range(20), *range(20, 40)}
    counts = collections.Counter(
        int(fps) for batch in found if batch["latents_mean"].shape[2] == 3 for fps in batch["fps"]
    )
    assert sum(counts[number] for number in range(6, 20)) == pytest.approx(0.25 * 100 * 14 / 20, abs=2)


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def failing():
        yield example(0, (16, 16))
        raise InterruptedError("enough")

    (shard,) = latents.plan_shards(((16, 16),), 4, 4)
    with pytest.raises(InterruptedError):
        latents.write_shard(tmp_path, shard, failing())
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="cannot write .*nowhere"):
        latents.write_shard(tmp_path / "nowhere", shard, [example(0, (16, 16))])


def test_folders_that_cannot_be_used_say_why(folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no precomputed latents: it has no latents\.json"):
        latents.LatentFolder(tmp_path)
    partly = write_folder(tmp_path / "partly", leave_out=["16x24-00001-of-00002.array_record"])
    with pytest.raises(ValueError, match="has 3 of 4 shards: run m3ddm_jax.precompute again"):
        latents.LatentFolder(partly)
    (partly / "latents.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe its shards"):
        latents.LatentFolder(partly)
    (partly / "latents.json").write_text("no")
    with pytest.raises(ValueError, match=r"latents\.json cannot be read"):
        latents.LatentFolder(partly)
    with pytest.raises(ValueError, match="exists already and holds no latents.json"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "notes.txt").touch()
        latents.write_facts(tmp_path / "other", FACTS)
    with pytest.raises(ValueError, match="positive weight"):
        latents.make_latent_batches([(str(folder), 0.0)], batch_size=2, buckets=BUCKETS, seed=0)


def test_a_damaged_shard_is_named(tmp_path):
    folder = write_folder(tmp_path / "folder")
    shard = folder / "16x16-00000-of-00002.array_record"
    content = bytearray(shard.read_bytes())
    place = content.index(b"latents_mean")
    content[place : place + 64] = bytes(64)
    shard.write_bytes(content)
    records = latents.LatentFolder(folder).bucket((16, 16))
    with pytest.raises(ValueError, match="record . of .*folder cannot be read"):
        [records[index] for index in range(len(records))]
    shard.write_bytes(content[:1000])
    with pytest.raises(ValueError, match="a shard of .*folder cannot be read"):
        latents.LatentFolder(folder).bucket((16, 16))


def test_latents_and_pixels_are_not_mixed():
    scenes, a, b = SourceSpec("synthetic", "", 1.0), SourceSpec("latents", "a", 1.0), SourceSpec("latents", "b", 2.0)
    assert latents.latent_folders([scenes]) == []
    assert latents.latent_folders([a, b]) == [("a", 1.0), ("b", 2.0)]
    with pytest.raises(ValueError, match="cannot be mixed in one run: found sources of the kinds latents, synthetic"):
        latents.latent_folders([a, scenes])


@pytest.mark.parametrize("examples", [10**12, 1e12, -1, "4", None, [4], True])
def test_facts_of_impossible_shards_are_refused_at_once(tmp_path, examples):
    facts = {"buckets": [[16, 16]], "examples": examples, "examples_per_shard": 4}
    (tmp_path / "latents.json").write_text(json.dumps(facts))
    start = time.perf_counter()
    with pytest.raises(ValueError, match="does not describe its shards"):
        latents.LatentFolder(tmp_path)
    assert time.perf_counter() - start < 1


def make_example(rng):
    return {
        "mean": rng.normal(size=(2, 3, 4)).astype(np.float16),
        "mask": np.ones((2, 3, 1), np.uint8),
        "observed": np.array([True, False]),
        "fps": np.float32(2.5),
        "clip_id": np.str_("clip @ é"),
    }


def test_a_record_comes_back_as_it_was_and_so_does_one_of_an_earlier_version():
    example = make_example(np.random.default_rng(0))
    former = io.BytesIO()
    np.savez(former, **example)
    for record in (latents._pack(example), former.getvalue()):
        found = latents._unpack(record)
        assert found.keys() == example.keys()
        for name, value in example.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape
            np.testing.assert_array_equal(found[name], value)


def test_a_damaged_record_is_refused():
    record = latents._pack(make_example(np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    damaged = [record[:-1], record + b"\0", record.replace(b"<f2", b"|O8"), record.replace(b"[2, 3, 4]", b"[2,-3, 4]")]
    for bad in damaged:
        with pytest.raises(ValueError, match="a record of latents is damaged"):
            latents._unpack(bad)
    for _ in range(300):  # whatever is changed: the same shapes, or one line
        bad = bytearray(record)
        bad[rng.integers(13, 200)] = rng.integers(256)
        try:
            latents._unpack(bytes(bad))
        except ValueError as error:
            assert "\n" not in str(error) or "damaged" in str(error)
