"""Measure speed and memory: python -m m3ddm_jax.bench --what=NAME [--report=FILE].

Prints a table and, with --report, writes the same as JSON together with versions, machine and load.

forward    one float32 forward of the config's U-Net beside a 3x3 convolution of PyTorch, both on two threads
data       clips a second of the input pipeline beside bare decoding in as many threads
outpaint   seconds and peak memory of the command from a cold start, and its peak memory for short and long videos
train      a training step of the config: seconds and their spread, clips and frames a second, TFLOP/s and share of the
           peak (MFU) of a device by what the network computes, without what rematerialisation repeats and without
           frozen encoders; seconds waited for clips, and spent on compiling; peak memory
flops      operations of the config's U-Net on one window, counted and not run, beside the official schedule's; what it
           computes by matrix products, temporal convolutions among them, counts as such
generator  E2FGVI's forward pass at 432x240, and in small beside the same arithmetic in PyTorch, both on two threads;
           memory of its deformable convolution; what a step of the config spends on the discriminator
flow       ISVI: RAFT beside torchvision's, the Poisson solve, a clip outpainted without networks, on two threads
attention  GlobalPaint's space-time windows beside full attention, and 64 global tokens beside M3DDM's 3,136
models     parameters, operations, memory and time a window of every method, as one Markdown table
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from data import throughput
from m3ddm_jax import cli
from m3ddm_jax.benchmarks import attention, flops, flow, forward, generator, models, outpaint, plan
from m3ddm_jax.benchmarks.report import surroundings, table
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.measure import memory, timing
from m3ddm_jax.measure.chips import CHIPS
from m3ddm_jax.train import train

MEASUREMENTS = {
    "attention": lambda options: attention.measure(),
    "data": lambda options: throughput.measure(options.clips),
    "flops": lambda options: flops.measure(options.config),
    "flow": lambda options: flow.measure(),
    "forward": lambda options: forward.measure(options.config),
    "generator": lambda options: generator.measure(options.config),
    "models": lambda options: models.measure(),
    "outpaint": lambda options: outpaint.measure(options.model),
    "train": lambda options: measure_training(options.config),
}
_TRAINING_STEPS = 5
_THREADS = 2
# Beside PyTorch on as many threads.
_ON_TWO_THREADS = ("flow", "forward", "generator")


def measure_training(config: ConfigDict) -> dict[str, Any]:
    """The real training loop with the config's data, on its first bucket: medians of steps behind two that warm it up.

    What a step computes is counted, not measured. Compiling is that of the whole run, its beginning among it.
    """
    config = config.copy_and_resolve_references()
    config.data.buckets = config.data.buckets[:1]
    config.train.update(steps=2 + _TRAINING_STEPS, log_every=1, save_every=1000, evaluate_every=0)
    with tempfile.TemporaryDirectory() as workdir, timing.compile_seconds() as compiling:
        train(config, workdir)
        lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()[2:]
    steps = [json.loads(line) for line in lines]
    names = ("step_seconds", "frames_per_second", "input_wait_seconds")
    medians = {name: statistics.median(step[name] for step in steps) for name in names}
    step = timing.Timing(tuple(step["step_seconds"] for step in steps))
    device = jax.devices()[0]
    counted = plan.operations(config, plan.make_program(config, jax.devices(), "train"))
    result = {"devices": f"{jax.device_count()} x {device.device_kind}", **medians, "step_spread": step.spread}
    result["clips_per_second"] = config.train.batch_size / step.median
    result |= counted
    if isinstance(counted["TFLOP"], float):
        own = (counted["TFLOP"] - counted.get("TFLOP of frozen encoders", 0.0)) / jax.device_count()
        result["TFLOP/s a device"] = own / step.median
        if chip := CHIPS.get(device.device_kind):
            result["MFU"] = own * plan.TERA / step.median / chip.flops
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    result |= {"compile_seconds": sum(compiling), "peak MiB": (peak or memory.peak_rss()) / 2**20}
    return result


def main() -> None:
    what, path = flags.FLAGS.what, flags.FLAGS.report
    before = os.getloadavg()
    if what in _ON_TWO_THREADS and hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it finds cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_THREADS])
    result = MEASUREMENTS[what](flags.FLAGS)
    print(table(result))
    if path:
        about = surroundings() | {"load_before": before}
        write_file(path, json.dumps({"what": what, "result": result, **about}, indent=1) + "\n")


def _define_flags() -> None:
    flags.DEFINE_enum("what", None, sorted(MEASUREMENTS), "What to measure.")
    # Overrides of single fields apply to the default, so it has to be there before flags are read.
    adversarial = any(argument.endswith("generator") for argument in sys.argv)
    default = "configs/in2out_tiny.py" if adversarial else "configs/m3ddm_small.py"
    config_flags.DEFINE_config_file("config", default, "Model of forward, experiment of train, flops and generator.")
    flags.DEFINE_string("clips", None, "Shards or folder of videos of data; synthetic scenes by default.")
    flags.DEFINE_string("model", None, "Model folder of outpaint; the one that comes with the project by default.")
    flags.DEFINE_string("report", None, "JSON file to write.")
    flags.mark_flag_as_required("what")


if __name__ == "__main__":
    _define_flags()
    cli.run("bench", main)
