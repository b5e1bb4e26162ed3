"""The input pipeline: sources -> batches of uint8 clips with their masks.

The clip at place i of step k is a function of (seed, k, i) alone: sources are shuffled and mixed globally, then every
process takes its contiguous part of each batch. So neither the number of processes nor that of threads changes what a
step trains on, any step is reached at once, and the state of an iterator is one number, the steps taken.
"""

import signal
import threading
from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import logging

from data import clips
from data.masks import MIN_SIDE, MaskSampler
from data.sources import Source, SourceSpec, open_source

PAPER_MASKS = MaskSampler()
FOREVER = 2**62
MAX_SUBSTITUTES = 64
ATTEMPTS = 3  # at a video whose storage answers, before it counts as unusable
WAITS = (1, 2, 4, 8, 15, 30, 60, 60)  # seconds between looks at a storage that does not answer
_WORKER_BUFFER = 4  # examples that each worker has ready
# What a random stream is for, so that no two streams of one seed are the same; data.synthetic.motion has a further one.
_BUCKET, _CLIP, _EXTENSION = range(3)

Extend = Callable[[np.random.Generator, dict[str, np.ndarray]], dict[str, np.ndarray]]
"""(rng of its own, batch entry) -> what such an entry has besides."""


class Record(NamedTuple):
    """Place of a video: the number of its source and its number in there."""

    source: int
    index: int


def make_batches(
    sources: Sequence[SourceSpec],
    *,
    batch_size: int,
    num_frames: int,
    buckets: Sequence[tuple[int, int]],
    global_frames: int,
    global_size: int,
    max_interval: int,
    seed: int,
    global_fit: str = "stretch",
    references: int = 0,
    masks: MaskSampler = PAPER_MASKS,
    extend: Extend | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    workers: int = 0,
    shuffle: bool = True,
) -> "StepDataset":
    """Makes the endless data set of this process's part of every batch.

    sources: opened by data.sources.open_source; clips are drawn in proportion to their weights.
    batch_size is global. buckets: the (height, width) a batch may have, one for all clips of a step. max_interval: the
    largest frame interval of a clip. references: further frames from anywhere in the video, after the clip's own.
    global_fit: how global frames are made squares (data.clips.fit_square). extend: what is made of each clip
    besides. num_threads decode at once, in this process or in each of `workers` others, which help where Python code
    holds threads up; shuffle=False goes through each source in order.

    A batch is a dict, B = batch_size / process_count, T = num_frames + references:
      video uint8 [B,T,H,W,3] RGB; mask uint8 [B,T,H,W,1], 1 = generate; known int32 [B,4], the box (data.masks.Mask)
      that a source would have; global_frames uint8 [B,G,S,S,3], what a source would show, over the whole video;
      fps float32 [B], frames per second of the clip; clip_id str [B].

    A video that cannot be read is replaced by the next of its source, counted, and named once in a warning. A storage
    that does not answer is waited for, so that no clip is lost; after sum(WAITS) seconds Unreachable is raised.
    Iterators have get_state() -> {"next_index": steps taken} and set_state. Raises ValueError for arguments that do not
    fit, at once; for a source whose videos are all unusable, when its first clip is due.
    """
    check_split(batch_size, process_index, process_count)
    if min(num_frames, global_frames, global_size, max_interval, num_threads) < 1 or not buckets:
        raise ValueError("frames, global frames, global size, interval, threads and buckets must each be at least 1")
    if references < 0:
        raise ValueError(f"references is {references}: 0 or more is accepted")
    if global_fit not in clips.GLOBAL_FITS:
        raise ValueError(f"global_fit {global_fit!r} is unknown: one of {', '.join(clips.GLOBAL_FITS)} is accepted")
    if any(min(bucket) < MIN_SIDE for bucket in buckets):
        raise ValueError(f"buckets need sides of at least {MIN_SIDE} pixels, found {buckets}")
    if workers < 0:
        raise ValueError(f"workers is {workers}: 0 or more is accepted")
    sources = [SourceSpec(*source) for source in sources]
    loader = ClipLoader(
        sources,
        masks,
        lines=round(1.25 * max(max(bucket) for bucket in buckets)),  # leaves room for crops
        num_frames=num_frames,
        global_frames=global_frames,
        global_size=global_size,
        global_fit=global_fit,
        references=references,
        max_interval=max_interval,
        seed=seed,
    )
    order = record_order(loader.sources, [source.weight for source in sources], seed=seed, shuffle=shuffle)
    local = batch_size // process_count

    def load(step: int, place: int) -> dict[str, np.ndarray]:
        example = step * batch_size + process_index * local + place
        entry = loader.load(order[example], example, bucket_of_step(seed, step, buckets))
        return entry if extend is None else entry | extend(np.random.default_rng([seed, example, _EXTENSION]), entry)

    return stack_steps(load, local, num_threads, workers, loader.gave_up)


def check_split(batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ValueError where a global batch does not split evenly over the processes."""
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ValueError(f"batch size {batch_size} is not a multiple of the process count {process_count}")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process index {process_index} is not below the process count {process_count}")


def stack_steps(
    load: Callable[[int, int], dict[str, np.ndarray]],
    local_batch_size: int,
    num_threads: int,
    workers: int = 0,
    closed: threading.Event | None = None,
) -> "StepDataset":
    """The endless data set whose batch of step k stacks load(k, 0), load(k, 1), ...; num_threads load at once, in this
    process or in each of `workers` others, to which `load` is pickled. closed: set while nothing is loaded, so that
    what is still under way may end."""

    def begin(step: int) -> grain.DatasetIterator:
        indices = grain.MapDataset.range(step * local_batch_size, FOREVER)
        # a long video at the head of the queue must not leave the other threads without work
        ahead = 4 * num_threads + local_batch_size // max(1, workers)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
        examples = indices.map(lambda index: load(*divmod(index, local_batch_size))).to_iter_dataset(options)
        if workers:
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_WORKER_BUFFER)
            examples = examples.mp_prefetch(processes, worker_init_fn=_ignore_signals)
        return iter(examples.batch(local_batch_size, drop_remainder=True))

    return StepDataset(begin, closed or threading.Event())


def _ignore_signals(worker: int, workers: int) -> None:
    """A worker ends when its process does, also where a signal goes to all of them."""
    del worker, workers
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def bucket_of_step(seed: int, step: int, buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns the (height, width) of a step's batch, from (seed, step) alone: every len(buckets) steps have each bucket
    once, in an order of their own."""
    turn, place = divmod(step, len(buckets))
    height, width = buckets[np.random.default_rng([seed, turn, _BUCKET]).permutation(len(buckets))[place]]
    return int(height), int(width)


def record_order(sources: Sequence[Sized], weights: Sequence[float], *, seed: int, shuffle: bool) -> grain.MapDataset:
    """Returns the endless global order of records: each source shuffled anew in each epoch, mixed by the weights.

    Raises ValueError where there is no source, or a weight is not positive.
    """
    if not sources or min(weights) <= 0:
        raise ValueError(f"there must be at least one source, each of a positive weight: found weights {list(weights)}")
    parts = []
    for number, source in enumerate(sources):
        part = grain.MapDataset.range(len(source))
        if shuffle:
            # One shuffle of grain leaves neighbours of a large source together in a batch, a second one parts them.
            for stream in np.random.default_rng([seed, number]).integers(2**32, size=2):
                part = part.shuffle(seed=int(stream))
        part = part.repeat()
        parts.append(part.map(lambda index, number=number: Record(number, int(index))))
    return grain.MapDataset.mix(parts, weights=list(weights))


class Unreachable(OSError):
    """The storage of a video does not answer."""


class ClipLoader:
    """Turns records into training examples; may be called from several threads at once, and pickled, which opens its
    sources anew.

    lines: of synthetic scenes, as of `open_source`. skipped: name -> reason of every unusable video met so far.
    """

    def __init__(
        self,
        sources: Sequence[SourceSpec],
        masks: MaskSampler,
        *,
        lines: int,
        num_frames: int,
        global_frames: int,
        global_size: int,
        global_fit: str,
        references: int,
        max_interval: int,
        seed: int,
    ):
        self._specs, self._lines = sources, lines
        self._masks = masks
        self._num_frames = num_frames
        self._global_frames = global_frames
        self._global_size = global_size
        self._global_fit = global_fit
        self._references = references
        self._max_interval = max_interval
        self._seed = seed
        self._open()

    def _open(self) -> None:
        self.sources = [open_source(kind, path, lines=self._lines, split=split) for kind, path, _, split in self._specs]
        self._lock = threading.Lock()
        self.gave_up = threading.Event()
        self.skipped: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        opened = ("sources", "_lock", "gave_up", "skipped")
        return {name: value for name, value in self.__dict__.items() if name not in opened}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def load(self, record: Record, example: int, bucket: tuple[int, int]) -> dict[str, np.ndarray]:
        """Loads the clip of an example, from `record` or the next usable one: a batch entry as in make_batches."""
        source = self.sources[record.source]
        tries = min(len(source), MAX_SUBSTITUTES)
        for offset in range(tries):
            index = (record.index + offset) % len(source)
            name = source.name(index)
            if name in self.skipped:
                continue
            try:
                return self._load_patiently(source, index, example, bucket)
            except Unreachable:
                raise
            except (ValueError, OSError) as error:
                self._skip(name, error)
        raise ValueError(f"{tries} videos in a row are unusable, the last is {name}: {self.skipped[name]}")

    def _load_patiently(self, source: Source, index: int, *arguments: Any) -> dict[str, np.ndarray]:
        """`_load_video`, again where it fails: a video is unusable only where its storage answers all the while."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._load_video(source, index, *arguments)
            except (ValueError, OSError):
                self._wait_for_storage(source, index)
                if attempt == ATTEMPTS:
                    raise

    def _wait_for_storage(self, source: Source, index: int) -> None:
        """Returns once the storage of a video can be read, at once where it can. Raises Unreachable after sum(WAITS)
        seconds, or where that was raised for another video."""
        for seconds in (*WAITS, None):
            try:
                return source.check_storage(index)
            except PermissionError:
                return  # it answers
            except OSError as error:
                if seconds is not None:
                    logging.warning("video %s cannot be reached, waiting: %s", source.name(index), error)
                if seconds is None or self.gave_up.wait(seconds):
                    self.gave_up.set()
                    message = f"the storage of {source.name(index)} has not answered for {sum(WAITS)} s: {error}"
                    raise Unreachable(message) from error

    def _load_video(self, source: Source, index: int, example: int, bucket: tuple[int, int]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self._seed, example, _CLIP])
        video = source.open(index)
        plan = clips.plan_clip(
            video.info,
            rng,
            num_frames=self._num_frames,
            bucket=bucket,
            global_frames=self._global_frames,
            max_interval=self._max_interval,
            references=self._references,
            part=video.part,
        )
        mask, known = self._masks(rng, self._num_frames + self._references, *bucket)
        frames, global_frames = clips.cut_clip(plan, video.read, known, self._global_size, self._global_fit)
        first = plan.indices[0] - (video.part.start if video.part else 0)
        return {
            "video": frames,
            "mask": mask,
            "known": np.array(known, np.int32),
            "global_frames": global_frames,
            "fps": np.float32(plan.fps),
            "clip_id": np.str_(f"{video.name}@{first}+{plan.interval}"),
        }

    def _skip(self, name: str, error: Exception) -> None:
        with self._lock:
            if name not in self.skipped:
                self.skipped[name] = str(error)
                logging.warning("skipped video %s: %s (%d skipped so far)", name, error, len(self.skipped))


class StepDataset(grain.IterDataset):
    """A data set of batches whose iterators count their position in steps, whatever the batch size of a process and the
    number of threads and workers. begin: (first step) -> iterator; closed: of `stack_steps`."""

    def __init__(self, begin: Callable[[int], grain.DatasetIterator], closed: threading.Event):
        super().__init__()
        self._begin, self._closed = begin, closed

    def __iter__(self) -> "StepIterator":
        return StepIterator(self._begin, self._closed)


class StepIterator(grain.DatasetIterator):
    """Iterator of StepDataset; it begins to load when it is first asked for a batch."""

    def __init__(self, begin: Callable[[int], grain.DatasetIterator], closed: threading.Event):
        super().__init__()
        self._begin_at, self._closed, self._step = begin, closed, 0
        self._batches: grain.DatasetIterator | None = None
        self._peeked: dict[str, np.ndarray] | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        batch, self._peeked = self.peek(), None
        self._step += 1
        return batch

    def peek(self) -> dict[str, np.ndarray]:
        """The batch that comes next, which still does."""
        if self._peeked is None:
            if self._batches is None:
                self._closed.clear()
                self._batches = self._begin_at(self._step)
            self._peeked = next(self._batches)
        return self._peeked

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        self.close()
        self._step = state["next_index"]

    def close(self) -> None:
        """Stop loading; what is asked for later is loaded anew."""
        if self._batches is not None:
            self._closed.set()
            self._batches.close()
        self._batches = self._peeked = None
