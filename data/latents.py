"""Encoded examples on disk: what a frozen autoencoder made of masked clips, once, in ArrayRecord shards.

A folder holds latents.json, the facts about its examples, and the shards of each bucket, named
HEIGHTxWIDTH-NUMBER-of-COUNT.array_record. A shard appears whole or not at all: the folder is complete when all of them
are there, and work on it goes on with those that are missing. A record is one example: the names, kinds and shapes of
its arrays as JSON, and their bytes.
"""

import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from data.pipeline import StepDataset, bucket_of_step, check_split, record_order, stack_steps
from data.sources import SourceSpec
from m3ddm_jax.files.opening import read_json, read_npz
from m3ddm_jax.files.writing import clean, new_file, write_file

EXAMPLES_PER_SHARD = 256
MAX_SHARDS = 1 << 20
_FACTS = "latents.json"
_MAGIC, _LENGTH_BYTES = b"m3ddm latents\n", 4


class Shard(NamedTuple):
    """One file of a folder: `count` examples of one bucket, numbers first, first + 1, ... of the pipeline's order."""

    name: str
    bucket: tuple[int, int]
    first: int
    count: int


def plan_shards(buckets: Sequence[tuple[int, int]], examples: int, examples_per_shard: int) -> list[Shard]:
    """All shards of a folder: `examples` in equal parts over the buckets, no example twice.

    Raises ValueError where there are fewer examples than buckets, or more shards than MAX_SHARDS.
    """
    numbers = [examples, examples_per_shard, *itertools.chain(*buckets)]
    if any(len(bucket) != 2 for bucket in buckets) or not all(type(number) is int for number in numbers):
        raise ValueError(
            f"{examples!r} examples of {buckets!r} in shards of {examples_per_shard!r}: whole numbers only"
        )
    if examples < len(buckets) or examples_per_shard < 1:
        raise ValueError(f"{examples} examples in shards of {examples_per_shard} for {len(buckets)} buckets: too few")
    if examples // examples_per_shard + len(buckets) > MAX_SHARDS:
        raise ValueError(f"{examples} examples in shards of {examples_per_shard}: {MAX_SHARDS} shards are accepted")
    shards: list[Shard] = []
    first = 0
    for place, (height, width) in enumerate(buckets):
        total = examples // len(buckets) + (place < examples % len(buckets))
        number = -(-total // examples_per_shard)
        for index in range(number):
            name = f"{height}x{width}-{index:05d}-of-{number:05d}.array_record"
            count = min(examples_per_shard, total - index * examples_per_shard)
            shards.append(Shard(name, (height, width), first, count))
            first += examples_per_shard
    return shards


def read_facts(folder: str | os.PathLike) -> dict[str, Any] | None:
    """What latents.json says; None where there is no such file. Raises ValueError where it is no JSON object."""
    path = pathlib.Path(folder) / _FACTS
    try:
        facts = read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(facts, dict):
        raise ValueError(f"{path} holds no JSON object")
    return facts


def write_facts(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Begins a folder with its facts, plain values, among them `buckets`, `examples` and `examples_per_shard`.

    Raises ValueError where something else lies in the folder already.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    clean(folder)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} exists already and holds no {_FACTS}")
    write_file(folder / _FACTS, json.dumps(facts, indent=2) + "\n")


def write_shard(folder: str | os.PathLike, shard: Shard, examples: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes the shard's examples under a temporary name, and gives it its own name at the end.

    Raises OSError where it cannot be written; what `examples` raises passes through. Nothing is left behind then.
    """
    path = pathlib.Path(folder) / shard.name
    try:
        with new_file(path) as temporary:
            # Uncompressed: latents hardly shrink, and a record is read whole.
            writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
            try:
                for example in examples:
                    writer.write(_pack(example))
            finally:
                writer.close()
    except RuntimeError as error:  # array_record's way to say that a file cannot be written
        raise OSError(f"cannot write {path}: {error}") from error


def missing_shards(folder: str | os.PathLike, shards: Sequence[Shard]) -> list[Shard]:
    """Those of the shards that the folder does not have yet."""
    found = {path.name for path in pathlib.Path(folder).iterdir()}
    return [shard for shard in shards if shard.name not in found]


class LatentFolder:
    """The examples of a complete folder. Raises ValueError where it is none, or not complete.

    facts: what latents.json says.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = pathlib.Path(path)
        facts = read_facts(self._path)
        if facts is None:
            raise ValueError(f"{path} holds no precomputed latents: it has no {_FACTS}")
        self.facts = facts
        try:
            shards = plan_shards(facts["buckets"], facts["examples"], facts["examples_per_shard"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path / _FACTS} does not describe its shards: {error!r:.300}") from None
        missing = missing_shards(self._path, shards)
        if missing:
            found = f"{len(shards) - len(missing)} of {len(shards)} shards"
            raise ValueError(f"{path} has {found}: run m3ddm_jax.precompute again to complete it")
        self._shards = shards

    def bucket(self, bucket: tuple[int, int]) -> "LatentRecords":
        """The examples of (height, width) pixels. Raises ValueError where there are none."""
        paths = [str(self._path / shard.name) for shard in self._shards if shard.bucket == tuple(bucket)]
        if not paths:
            raise ValueError(f"{self._path} has no examples of {bucket[0]} x {bucket[1]} pixels")
        return LatentRecords(paths)


class LatentRecords:
    """The examples of some shards by number, each a dict of arrays. Raises ValueError where a file is damaged."""

    def __init__(self, paths: Sequence[str]):
        try:
            self._records = grain.sources.ArrayRecordDataSource(list(paths))
        except RuntimeError as error:
            raise ValueError(f"a shard of {pathlib.Path(paths[0]).parent} cannot be read: {error}") from error
        self._folder = pathlib.Path(paths[0]).parent

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        try:
            return _unpack(self._records[index])
        except RuntimeError as error:  # array_record's way to say that a file is damaged
            raise ValueError(f"record {index} of {self._folder} cannot be read: {error}") from error


def latent_folders(sources: Sequence[SourceSpec]) -> list[tuple[str, float]]:
    """The (path, weight) of sources of the kind "latents"; none where all are of video.

    Raises ValueError where there are both.
    """
    folders = [(source.path, source.weight) for source in sources if source.kind == "latents"]
    if folders and len(folders) < len(sources):
        kinds = ", ".join(source.kind for source in sources)
        raise ValueError(f"latents and pixels cannot be mixed in one run: found sources of the kinds {kinds}")
    return folders


def make_latent_batches(
    sources: Sequence[tuple[str, float]],
    *,
    batch_size: int,
    buckets: Sequence[tuple[int, int]],
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    workers: int = 0,
) -> StepDataset:
    """Makes the endless data set of this process's part of every batch, as data.pipeline.make_batches does of video.

    sources: (folder, weight) each. Every example of a folder comes once in each epoch of its bucket, in a new order;
    the clip at place i of step k is a function of (seed, k, i) alone. A batch has the arrays of its examples, stacked.
    Raises ValueError for folders that are none, are not complete or lack a bucket.
    """
    check_split(batch_size, process_index, process_count)
    folders = [LatentFolder(path) for path, _ in sources]
    weights = [weight for _, weight in sources]
    records, orders = {}, {}
    for bucket in buckets:
        records[tuple(bucket)] = [folder.bucket(bucket) for folder in folders]
        orders[tuple(bucket)] = record_order(records[tuple(bucket)], weights, seed=seed, shuffle=True)
    local = batch_size // process_count

    def load(step: int, place: int) -> dict[str, np.ndarray]:
        bucket = bucket_of_step(seed, step, buckets)
        # Each bucket has had its turn once in every len(buckets) steps before.
        record = orders[bucket][step // len(buckets) * batch_size + process_index * local + place]
        return records[bucket][record.source][record.index]

    return stack_steps(load, local, num_threads, workers)


def _pack(example: Mapping[str, np.ndarray]) -> bytes:
    arrays = {name: np.asarray(value) for name, value in example.items()}
    head = json.dumps({name: [array.dtype.str, array.shape] for name, array in arrays.items()}).encode()
    parts = (array.tobytes() for array in arrays.values())
    return b"".join([_MAGIC, len(head).to_bytes(_LENGTH_BYTES, "little"), head, *parts])


def _unpack(record: bytes) -> dict[str, np.ndarray]:
    """The arrays of a record, read-only views of it. Records of earlier versions are .npz files."""
    if not record.startswith(_MAGIC):
        return read_npz(io.BytesIO(record))
    start = len(_MAGIC) + _LENGTH_BYTES
    end = start + int.from_bytes(record[len(_MAGIC) : start], "little")
    example = {}
    try:
        for name, (code, shape) in json.loads(record[start:end]).items():
            kind = np.dtype(code)
            if kind.hasobject or any(type(side) is not int or side < 0 for side in shape):
                raise ValueError(f"{name} is of the kind {code} and shape {shape}")
            count = math.prod(shape)
            example[name] = np.frombuffer(record, kind, count, end).reshape(shape)
            end += count * kind.itemsize
    except (ValueError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"a record of latents is damaged: {error}") from None
    if end != len(record):
        raise ValueError(f"a record of latents is damaged: it has {len(record)} bytes, its head describes {end}")
    return example
