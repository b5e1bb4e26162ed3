"""Outpaint many videos: m3ddm batch SOURCES OUT [--aspect=16:9 | --size=1280x720 | --pad=L,T,R,B] ...

SOURCES is a folder, which is searched in all its depth, a pattern such as 'clips/*.mp4', or a table .csv with the
columns video and any of aspect, size, pad, anchor and mask, whose paths are relative to the table. Each video is
written to OUT under its name, a folder of images as a folder of PNG, and what this program cannot write, such as .avi,
as .mp4. A model is loaded once a worker, and videos of one size share compiled programs.

A video whose output is there already is skipped: the same command goes on where it was stopped. One that fails is
recorded, and the others go on. OUT/report.jsonl gets a line for each video. --workers=N runs N processes here,
--ray=ADDRESS workers on a Ray cluster whose nodes see the same files. The other flags are those of m3ddm outpaint.
Exit code 0, 1 if a video failed, or 2 with one line that says what is wrong.
"""

import collections
import dataclasses
import json
import logging
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import flags

from m3ddm_jax import cli, outpaint_flags
from m3ddm_jax.batching.devices import Devices
from m3ddm_jax.batching.job import BatchSettings, Job, Result, Runner
from m3ddm_jax.batching.processes import run_in_processes
from m3ddm_jax.batching.ray_cluster import run_on_ray
from m3ddm_jax.batching.videos import REPORT, list_jobs
from m3ddm_jax.files.locking import Lock

_LOG = logging.getLogger("m3ddm_jax.batch")


def main(sources: str, out: str) -> None:
    values = flags.FLAGS
    usual = {name: values[name].value for name in outpaint_flags.TARGET}
    jobs = list_jobs(sources, out, usual)
    os.makedirs(out, exist_ok=True)
    counts = collections.Counter()
    with Lock(pathlib.Path(out, ".lock"), f"the output {out}"):
        left = [job for job in jobs if not os.path.exists(job.output)]
        counts["skipped"] = len(jobs) - len(left)
        for result in tqdm.tqdm(_results(left), total=len(left), unit="video", disable=None):
            _report(pathlib.Path(out, REPORT), result)
            counts[result.status] += 1
            for line in [*result.notes, *([result.error] if result.error else [])]:
                _LOG.warning("%s", line if result.video in line else f"{result.video}: {line}")
    told = ", ".join(f"{counts[status]} {status}" for status in ("done", "skipped", "failed"))
    print(f"{out}: {told} of {len(jobs)} videos, {REPORT}")
    if counts["failed"]:
        sys.exit(1)


def _report(path: pathlib.Path, result: Result) -> None:
    """Append a line of JSON at once, so that a command that is stopped has reported what it did."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def _results(jobs: Sequence[Job]) -> Iterator[Result]:
    """The results of jobs, from where the flags have them done."""
    values = flags.FLAGS
    settings = BatchSettings(
        values.method,
        outpaint_flags.options(values),
        values.seed,
        values.fps,
        outpaint_flags.encoding(values),
        outpaint_flags.reading(values),
    )
    methods = tuple(dict.fromkeys(settings.method_for(job.target) for job in jobs))
    devices = Devices.parse(values.devices)
    if not jobs:
        return
    if values.ray is not None:
        yield from run_on_ray(jobs, settings, methods, values.ray, values.workers, devices)
    elif (values.workers or 1) > 1:
        yield from run_in_processes(jobs, settings, methods, values.workers, devices)
    else:
        yield from map(Runner(settings, methods), jobs)


def _define_flags() -> None:
    outpaint_flags.define()
    flags.DEFINE_integer("workers", None, "Processes; by default 1 here, and one a node with --ray.", lower_bound=1)
    flags.DEFINE_string("ray", None, "Address of a Ray cluster, HOST:PORT, ray://HOST:PORT or auto.")
    devices = "What a worker needs: cpu:NUMBER, gpu:NUMBER, or with --ray tpu:NUMBER."
    flags.DEFINE_string("devices", "cpu:1", devices)


if __name__ == "__main__":
    cli.enable_compilation_cache()
    _define_flags()
    cli.run("batch", main, "SOURCES", "OUT")
