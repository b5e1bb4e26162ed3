import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import av
import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data import clips, pipeline, prepare, reading, sources, splits
from data.encode import encode_video
from data.masks import Box
from m3ddm_jax.files.locking import Lock
from m3ddm_jax.files.writing import place
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import open_container

HEIGHT, WIDTH, FPS = 80, 112, 8
SETTINGS = prepare.PrepareSettings(short_side=64, max_seconds=4)


def shot(seed, num_frames):
    """Blocks of random colours that slide: uint8 [T,80,112,3]."""
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(40, 250, (11, 30, 3)), np.ones((8, 8, 1), int)).astype(np.uint8)
    return np.stack([image[:HEIGHT, 2 * t : 2 * t + WIDTH] for t in range(num_frames)])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder with one video of every kind: good, cut, barred, still, short, small, broken, frames."""
    root = tmp_path_factory.mktemp("raw")
    barred = shot(3, 20)
    barred[:, :4] = barred[:, -4:] = 0
    videos = {
        "good": shot(0, 40),
        "cut": np.concatenate([shot(1, 18), shot(2, 24), shot(8, 6)]),
        "barred": barred,
        "still": np.repeat(shot(4, 1), 20, axis=0),
        "short": shot(5, 10),
        "small": shot(6, 20)[:, :40],
    }
    for name, frames in videos.items():
        (root / f"{name}.mp4").write_bytes(encode_video(frames, FPS, crf=10))
    (root / "broken.mp4").write_text("no video")
    (root / "notes.txt").write_text("about the videos")
    (root / "poster.png").write_bytes(cv2.imencode(".png", barred[0])[1].tobytes())
    (root / "frames").mkdir()
    for number, frame in enumerate(shot(7, 50)):
        cv2.imwrite(str(root / "frames" / f"{number}.png"), frame[..., ::-1])
    return root


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "shards"
    report = prepare.prepare(raw, out, SETTINGS, num_threads=2)
    return out, report


def records(folder):
    found = tfds.builder_from_directory(str(folder)).as_data_source(split="all")
    return {record["name"].decode(): record for record in (found[index] for index in range(len(found)))}


def test_the_report_says_what_was_made_and_what_was_skipped_and_why(prepared):
    out, report = prepared
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    reasons = {(entry["video"], entry["frames"]): entry["reason"] for entry in report["skipped"]}
    unreadable = reasons.pop(("broken.mp4", None))
    assert unreadable.startswith("unreadable: ") and "is no readable video" in unreadable
    assert reasons.pop(("notes.txt", None)).startswith("unreadable: ")
    assert reasons == {
        ("poster.png", None): "an image beside videos",
        ("cut.mp4", (42, 48)): "shorter than 2 s",
        ("short.mp4", (0, 10)): "shorter than 2 s",
        ("small.mp4", (0, 20)): "smaller than 64 pixels",
        ("still.mp4", (0, 20)): "nothing moves",
    }
    assert report["videos"] == 9 and report["clips"] == 6
    assert report["seconds"] == pytest.approx((40 + 18 + 24 + 20) / 8 + 50 / 24, abs=0.01)
    assert os.listdir(out.parent) == ["shards"], "nothing is left beside it"


def test_files_of_any_name_and_container_are_taken(tmp_path):
    (tmp_path / "raw").mkdir()
    kinds = {"a.ts": ("mpegts", "libx264"), "b.vob": ("dvd", "mpeg2video"), "c": ("avi", "mpeg4")}
    for name, (container_format, encoder) in kinds.items():
        with av.open(str(tmp_path / "raw" / name), "w", format=container_format) as container:
            stream = container.add_stream(encoder, rate=25)
            stream.height, stream.width, stream.pix_fmt, stream.bit_rate = HEIGHT, WIDTH, "yuv420p", 4_000_000
            for frame in shot(0, 60):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
    report = prepare.prepare(tmp_path / "raw", tmp_path / "out", prepare.PrepareSettings(short_side=64))
    assert (report["videos"], report["clips"], report["skipped"]) == (3, 3, [])
    assert sorted(records(tmp_path / "out")) == ["a.ts/0", "b.vob/0", "c/0"]


def test_clips_are_cut_cropped_scaled_and_decodable(prepared, raw):
    found = records(prepared[0])
    assert sorted(found) == ["barred.mp4/0", "cut.mp4/0", "cut.mp4/18", "frames/0", "good.mp4/0", "good.mp4/20"]
    expected = {"barred.mp4/0": (20, 64, 104), "cut.mp4/18": (24, 64, 90), "good.mp4/20": (20, 64, 90)}
    for name, shape in expected.items():
        record = found[name]
        assert (record["num_frames"], record["height"], record["width"]) == shape
    source = sources.open_source("shards", prepared[0], split="all")
    for index in range(len(source)):
        video = source.open(index)
        frames = video.read(range(video.info.num_frames))
        assert frames.shape == (video.info.num_frames, video.info.height, video.info.width, 3)
        assert video.info.num_frames == {"good.mp4": 40}.get(video.name.split("/")[0], len(video.part or frames))
    last = records(prepared[0])["good.mp4/20"]
    decoded = reading.read_media(last["video"], [19])[0]
    truths = [cv2.resize(frame, (90, 64), interpolation=cv2.INTER_AREA) for frame in shot(0, 40)]
    assert np.argmin([np.abs(decoded.astype(int) - truth).mean() for truth in truths]) == 39
    with open_container(last["video"]) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert np.flatnonzero(keys).tolist() == [0, 12]


def test_the_parts_of_a_shot_are_read_as_one_video_and_share_no_frame(prepared):
    source = sources.open_source("shards", prepared[0], split="all")
    parts = {video.name: video for video in map(source.open, range(len(source))) if video.name.startswith("good")}
    assert {name: video.part for name, video in parts.items()} == {
        "good.mp4/0": range(0, 20),
        "good.mp4/20": range(20, 40),
    }
    truths = np.stack([cv2.resize(frame, (90, 64), interpolation=cv2.INTER_AREA) for frame in shot(0, 40)])
    asked = [35, 3, 19, 20, 35]
    for video in parts.values():
        assert video.info.num_frames == 40
        read = video.read(asked)
        nearest = [np.argmin(np.abs(frame.astype(int) - truths).mean(axis=(1, 2, 3))) for frame in read]
        assert nearest == asked
        assert video.read([39, 0], (16, 20)).shape == (2, 16, 20, 3)
    assert source.lengths() == {18: 1, 20: 1, 24: 1, 40: 2, 50: 1}
    # Both parts serve intervals that neither could alone.
    drawn = [
        clips.plan_clip(
            video.info, np.random.default_rng(seed), num_frames=4, bucket=(16, 16), global_frames=4, max_interval=13,
            part=video.part,
        )
        for seed in range(200)
        for video in parts.values()
    ]  # fmt: skip
    assert {plan.interval for plan in drawn} == set(range(1, 14))
    assert {plan.global_indices for plan in drawn} == {(0, 13, 26, 39)}


def test_half_of_the_longest_record_serves_an_interval_of_15(tmp_path):
    frames = np.zeros((453, 64, 64, 3), np.uint8)
    frames[:, :, :] = (np.arange(453) % 200)[:, None, None, None]
    video = FrameSource.from_array(frames, 24)
    made = list(prepare.encode_shot(video, "long", (0, 453), Box(0, 64, 0, 64), prepare.PrepareSettings()))
    assert [(clip.part, clip.parts, clip.num_frames, clip.shot_frames) for clip in made] == [
        (0, 2, 226, 453),
        (1, 2, 227, 453),
    ]
    assert clips.longest_interval(226, 16) == 15
    (whole,) = prepare.encode_shot(video, "long", (0, 452), Box(0, 64, 0, 64), prepare.PrepareSettings())
    assert whole.num_frames == 452


class FormerClips(tfds.core.GeneratorBasedBuilder):
    """Shards as earlier versions wrote them."""

    VERSION, code_path = tfds.core.Version("1.0.0"), None

    def __init__(self, records, *, data_dir):
        self._made = records
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self):
        types = {"num_frames": np.int32, "fps": np.float32, "height": np.int32, "width": np.int32}
        features = {"video": tfds.features.Tensor(shape=(), dtype=np.object_), "name": tfds.features.Text(), **types}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        names = self.info.features.keys()
        return {"train": ((clip["name"], {name: clip[name] for name in names}) for clip in self._made)}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def former(prepared, tmp_path_factory):
    """The prepared clips in a data set of an earlier version."""
    folder = tmp_path_factory.mktemp("former")
    FormerClips(records(prepared[0]).values(), data_dir=folder).download_and_prepare()
    return next(folder.glob("former_clips/*"))


def test_data_sets_of_earlier_versions_are_read(former):
    source = sources.open_source("shards", former)
    videos = list(map(source.open, range(len(source))))
    assert sorted(video.info.num_frames for video in videos) == [18, 20, 20, 20, 24, 50]
    assert all(video.part is None and len(video.read([0])) == 1 for video in videos) and source.lengths() is None


def test_whole_videos_are_held_out(prepared):
    out, report = prepared
    by_split = {
        split: {source.open(index).name.split("/")[0] for index in range(len(source))}
        for split in ("train", "validation")
        for source in [sources.open_source("shards", out, split=split)]
    }
    assert by_split["train"] | by_split["validation"] == {"barred.mp4", "cut.mp4", "good.mp4", "frames"}
    assert not by_split["train"] & by_split["validation"]
    # Names come first that are held out first; those before have no clips.
    (held_out,) = by_split["validation"]
    left_out = {"still.mp4", "short.mp4", "small.mp4", "broken.mp4", "notes.txt"}
    order = splits.by_hash([*left_out, *by_split["train"], held_out])
    assert set(order[: order.index(held_out)]) <= left_out
    assert report["validation"]["videos"] == [held_out] and report["validation"]["clips"] >= 1


def test_parts_are_made_one_by_one_and_read_as_one_data_set(raw, prepared, tmp_path, run_module):
    command = ["data.prepare", raw, tmp_path / "out", "--short-side=64", "--max-seconds=4"]
    assert run_module(*command, "--shard=0/3").returncode == 0
    with pytest.raises(ValueError, match="out has 1 parts, of 3: data.prepare --shard=I/3 .* missing, 1, 2"):
        sources.open_source("shards", tmp_path / "out")
    for number in (1, 2):
        assert run_module(*command, f"--shard={number}/3").returncode == 0
    again = run_module(*command, "--shard=1/3")
    assert again.returncode == 0 and "00001-of-00003 is there already" in again.stdout
    source = sources.open_source("shards", tmp_path / "out", split="all")
    names = [source.open(index).name for index in range(len(source))]
    assert sorted(names) == sorted(records(prepared[0]))
    assert len({source.name(index) for index in range(len(source))}) == 6
    assert source.lengths() == {18: 1, 20: 1, 24: 1, 40: 2, 50: 1}
    for index in range(len(source)):
        source.check_storage(index)
    reports = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/report.json")]
    skipped = [entry["video"] for report in reports for entry in report["skipped"]]
    assert len(reports) == 3 and sorted(skipped) == sorted(entry["video"] for entry in prepared[1]["skipped"])


def test_a_part_without_clips_has_a_report_alone(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "notes.txt").write_text("about videos")
    report = prepare.prepare(tmp_path / "raw", tmp_path / "out", SETTINGS, shard=(0, 1))
    assert report["clips"] == 0 and os.listdir(tmp_path / "out") == ["report.json"]


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "0/0", "a/b", "0/100000"])
def test_parts_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--shard must be I/N with I from 0 to N - 1"):
        prepare.parse_shard(text)


def test_a_single_video_is_for_training(raw, tmp_path, run_module):
    (tmp_path / "raw").mkdir()
    for name in ("good.mp4", "still.mp4"):
        shutil.copy(raw / name, tmp_path / "raw")
    done = run_module("data.prepare", tmp_path / "raw", tmp_path / "out", "--short-side=64")
    assert done.returncode == 0 and "one video alone has clips: none is held out for validation" in done.stderr
    assert len(sources.open_source("shards", tmp_path / "out")) == 1
    with pytest.raises(reading.NoSuchSplit, match="has no split validation: it is of an earlier version, or was"):
        sources.open_source("shards", tmp_path / "out", split="validation")


def test_shards_feed_the_pipeline(prepared):
    batch = next(
        iter(
            pipeline.make_batches(
                [("shards", str(prepared[0]), 1.0, "all")],
                batch_size=6,
                num_frames=4,
                buckets=((32, 48),),
                global_frames=2,
                global_size=16,
                max_interval=2,
                seed=0,
            )
        )
    )
    assert batch["video"].shape == (6, 4, 32, 48, 3)
    assert len({name.split("@")[0] for name in batch["clip_id"]}) == 6
    assert all(name.startswith(tuple(records(prepared[0]))) for name in batch["clip_id"])


def test_a_damaged_record_is_refused_and_the_others_are_read(prepared, tmp_path):
    shutil.copytree(prepared[0], tmp_path / "damaged")
    video = records(prepared[0])["good.mp4/20"]["video"]
    shards = (tmp_path / "damaged").glob("*array_record*")
    (shard,) = [path for path in shards if video[len(video) // 2 :][:64] in path.read_bytes()]
    content = bytearray(shard.read_bytes())
    place = content.index(video[len(video) // 2 :][:64])
    content[place : place + 64] = bytes(64)
    shard.write_bytes(content)
    source = sources.open_source("shards", tmp_path / "damaged", split="all")
    read, refused = [], []
    for index in range(len(source)):
        try:
            read.append(source.open(index).name)
        except ValueError as error:
            refused.append(str(error))
    assert len(read) == 5 and "good.mp4/20" not in read
    assert len(refused) == 1 and "cannot be read" in refused[0]


def test_tensorflow_is_not_imported(raw, prepared, tmp_path):
    program = (
        "import sys; from data import prepare, sources;"
        f"prepare.prepare({str(raw)!r}, {str(tmp_path / 'out')!r}, prepare.PrepareSettings(64, 2.0, 4.0));"
        f"sources.open_source('shards', {str(tmp_path / 'out')!r}).open(0).read([0]);"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert records(tmp_path / "out").keys() == records(prepared[0]).keys()


def run_process(*arguments, **options):
    command = [sys.executable, "-m", "data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_the_command_reports_and_exits_0(raw, tmp_path):
    done = run_process(raw, tmp_path / "deep" / "out", "--short-side=64", "--max-seconds=4")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (
        lines[-1].startswith("6 clips, ")
        and " of them for validation, " in lines[-1]
        and "skipped still.mp4 frames 0..19: nothing moves" in lines
    )
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: [root / "missing", root / "out"], "missing is not a folder"),
        (lambda root: [root / "empty", root / "out"], "holds no video file"),
        (lambda root: [root / "bad", root / "out"], "nothing usable"),
        (lambda root: [root / "bad", root / "empty"], "exists already"),
        (lambda root: [root / "bad"], "SOURCE OUT expected, found"),
        (lambda root: [root / "bad", root / "out", "--nosuch"], "Unknown command line flag 'nosuch'"),
        (lambda root: [root / "bad", root / "out", "--short-side=8"], "at least 64"),
        (lambda root: [root / "bad", root / "out", "--max-seconds=3"], "at least twice"),
    ],
)
def test_what_cannot_be_prepared_exits_2_with_one_line_and_leaves_nothing(run_module, tmp_path, make, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "clip.mp4").write_text("no video")
    done = run_module("data.prepare", *make(tmp_path))
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("data.prepare: ") and message in last
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["bad", "empty"]


def test_a_full_disk_exits_2_and_leaves_nothing(raw, tmp_path):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_process(raw, tmp_path / "out", "--short-side=64", preexec_fn=limit)
    assert done.returncode == 2 and "data.prepare: cannot write" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_two_at_once_are_refused_and_leftovers_go(raw, tmp_path):
    out, settings = tmp_path / "out", SETTINGS
    leftover = tmp_path / f".out.{place()}-{2**22}-01234567.part"
    leftover.mkdir()
    with Lock(tmp_path / ".out.lock", "it"), pytest.raises(ValueError, match="the output .*out is in use by process"):
        prepare.prepare(raw, out, settings)
    assert not out.exists()
    prepare.prepare(raw, out, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (out / "report.json").is_file()


def test_an_output_in_the_source_is_refused(raw):
    with pytest.raises(ValueError, match="the output .* lies in the source"):
        prepare.prepare(raw, raw / "frames" / "out")
