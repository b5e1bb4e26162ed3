"""How fast the input pipeline is beside bare decoding, for the benchmark table."""

import concurrent.futures
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import tensorflow_datasets as tfds

from data import pipeline
from data.encode import encode_video
from m3ddm_jax.scenes.scene import FPS, Scene
from m3ddm_jax.video import FrameSource
from m3ddm_jax.video.container import open_container
from m3ddm_jax.video.finding import find_videos

NUM_FRAMES = 16
BUCKET = (256, 256)
ROUNDS = 5
CLIPS = 32
PAUSE = 0.5  # seconds, in which reads that the pipeline had begun come to an end
MADE_CLIPS = 8
MADE_FRAMES = 96
WORKERS = (1, 2, 4, 8)


def measure(path: str | os.PathLike | None = None, num_threads: int = 2) -> dict[str, float]:
    """Measures frames decoded a second, by the pipeline and by PyAV alone in as many threads, in turns in one run.

    path: shards of data.prepare or a folder of video files; without it 256x256 videos are made from synthetic scenes.
    The pipeline makes clips of 16 frames of 256x256 with 16 global frames; what counts is the frames of the videos it
    went through. PyAV alone decodes all frames of the same videos, and either makes an RGB array of each (bare) or not
    even that (decode_only). Rates and ratios are medians over rounds. clips_per_second_N: of the pipeline with N
    workers of one thread each, one a core; 0: with num_threads in this process. Raises ValueError where
    path holds no videos.
    """
    with tempfile.TemporaryDirectory() as made:
        if not path:
            path = made
            _make_videos(pathlib.Path(made))
        kind = "shards" if (pathlib.Path(path) / "dataset_info.json").exists() else "videos"
        videos = _encoded_videos(kind, path)
        passes = math.ceil(CLIPS / len(videos))
        contestants: dict[str, Callable[[], None]] = {
            "pipeline": lambda: _run_pipeline(kind, path, num_threads, passes * len(videos)),
            "bare": lambda: _decode_all(videos * passes, num_threads, as_rgb=True),
            "decode_only": lambda: _decode_all(videos * passes, num_threads, as_rgb=False),
        }
        seconds = {name: [] for name in contestants}
        for _ in range(ROUNDS):
            for name, run in contestants.items():
                time.sleep(PAUSE)
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        clips = {
            f"clips_per_second_{workers}": _clips_per_second(kind, path, 1 if workers else num_threads, workers)
            for workers in (0, *(count for count in WORKERS if count <= cores))
        }
    frames = passes * sum(len(FrameSource(video)) for video in videos)

    def ratio(other: str) -> float:
        return statistics.median(
            theirs / ours for ours, theirs in zip(seconds["pipeline"], seconds[other], strict=True)
        )

    return {
        "threads": num_threads,
        **{f"{name}_frames_per_second": frames / statistics.median(times) for name, times in seconds.items()},
        "pipeline_over_bare": ratio("bare"),
        "pipeline_over_decode_only": ratio("decode_only"),
        **clips,
    }


def _encoded_videos(kind: str, path: str | os.PathLike) -> list[bytes]:
    if kind == "shards":
        records = tfds.builder_from_directory(os.fspath(path)).as_data_source(split="all")
        return [records[index]["video"] for index in range(len(records))]
    return [video.read_bytes() for video in find_videos(pathlib.Path(path)) if video.is_file()]


def _make_videos(folder: pathlib.Path) -> None:
    for seed in range(MADE_CLIPS):
        scene = Scene(seed, *BUCKET)
        frames = (scene.frame(index) for index in range(MADE_FRAMES))
        (folder / f"{seed}.mp4").write_bytes(encode_video(frames, FPS))


def _run_pipeline(kind: str, path: str | os.PathLike, num_threads: int, clips: int) -> None:
    batches = _clips(kind, path, num_threads)
    for _ in range(clips):
        next(batches)
    batches.close()


def _clips_per_second(kind: str, path: str | os.PathLike, num_threads: int, workers: int) -> float:
    """Once all workers have begun, and what they had ready is taken."""
    clips = _clips(kind, path, num_threads, workers)
    for _ in range(CLIPS):
        next(clips)
    start = time.perf_counter()
    for _ in range(CLIPS):
        next(clips)
    seconds = time.perf_counter() - start
    clips.close()
    return CLIPS / seconds


def _clips(kind: str, path: str | os.PathLike, num_threads: int, workers: int = 0) -> pipeline.StepIterator:
    return iter(
        pipeline.make_batches(
            [(kind, path, 1.0, "all")],
            batch_size=1,
            num_frames=NUM_FRAMES,
            buckets=[BUCKET],
            global_frames=NUM_FRAMES,
            global_size=BUCKET[0],
            max_interval=15,
            seed=0,
            num_threads=num_threads,
            workers=workers,
            shuffle=False,
        )
    )


def _decode_all(videos: list[bytes], num_threads: int, as_rgb: bool) -> None:
    def decode_one(video: bytes) -> None:
        with open_container(video) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if as_rgb:
                    frame.to_ndarray(format="rgb24")

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(decode_one, videos):
            pass
