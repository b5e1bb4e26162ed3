"""Measure speed and memory: python -m m3ddm_jax.bench --what=NAME [--report=FILE].

Prints a table and, with --report, writes the same as JSON together with versions, machine and load. With --distributed
the same command runs on several hosts, of which the first prints.

forward    one float32 forward of the config's U-Net beside a 3x3 convolution of PyTorch, both on two threads;
           --compare=torch: a window in the config's dtype next to the same U-Net in PyTorch, on the same CPU or GPU
data       clips a second of the input pipeline beside bare decoding in as many threads
outpaint   seconds and peak memory of the command from a cold start, and its peak memory for short and long videos
train      training steps of the config, as many as --steps: p50, p90 and p99 of their seconds, clips and frames a
           second, TFLOP/s and share of the peak (MFU) of a device by what the network computes, without what
           rematerialisation repeats, without frozen encoders and with them; seconds of compiling; peak memory.
           --input=pipeline: the real loop and its waiting for clips; --input=device: batches that lie on the devices,
           and next to the time GiB moved and the least seconds that they take. --sweep measures every combination of
           config fields, one line of JSON a point; --profile=DIR writes a profiler's trace
transformer  one transformer of M3DDM forward and backward, compiled for --topology: memory and GiB moved by the form of
           attention; nothing is run
flops      operations of the config's U-Net on one window, counted and not run, beside the official schedule's; what it
           computes by matrix products, temporal convolutions among them, counts as such
generator  E2FGVI's forward pass at 432x240, and in small beside the same arithmetic in PyTorch, both on two threads;
           memory of its deformable convolution; what a step of the config spends on the discriminator
flow       ISVI: RAFT beside torchvision's, the Poisson solve, a clip outpainted without networks, on two threads
attention  GlobalPaint's space-time windows beside full attention, and 64 global tokens beside M3DDM's 3,136
acceptance  on the first GPU or TPU that comes, in eight minutes: fused attention, weight gradients and a network in
           bfloat16 next to float32 on a CPU; MFU, seconds and peak memory of M3DDM's forward pass and training step,
           with fused attention and without; what passed
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
from m3ddm_jax.benchmarks import (
    acceptance,
    attention,
    flops,
    flow,
    forward,
    generator,
    models,
    outpaint,
    plan,
    training,
    transformer,
)
from m3ddm_jax.benchmarks.report import surroundings, table
from m3ddm_jax.files.writing import write_file
from m3ddm_jax.measure import timing
from m3ddm_jax.parallel import compiling, processes
from m3ddm_jax.parallel.topology import topology_devices
from m3ddm_jax.train import train

MEASUREMENTS = {
    "acceptance": lambda options: acceptance.measure(profile=options.profile or ""),
    "attention": lambda options: attention.measure(),
    "data": lambda options: throughput.measure(options.clips),
    "flops": lambda options: flops.measure(options.config),
    "flow": lambda options: flow.measure(),
    "forward": lambda options: (forward.compare_with_torch if options.compare else forward.measure)(options.config),
    "generator": lambda options: generator.measure(options.config),
    "models": lambda options: models.measure(),
    "outpaint": lambda options: outpaint.measure(options.model),
    "train": lambda options: measure_training(options.config, options.steps, options.input, options.profile or ""),
    "transformer": lambda options: transformer.measure(topology_devices(options.topology)),
}
INPUTS = ("pipeline", "device")
_STEPS = 20
_THREADS = 2
# Beside PyTorch on as many threads.
_ON_TWO_THREADS = ("flow", "forward", "generator")


def measure_training(config: ConfigDict, steps: int, source: str = INPUTS[0], profile: str = "") -> dict[str, Any]:
    """Training steps of a config, on batches of its first bucket, behind some that warm it up (`training.WARM_UP`).

    source: "pipeline", the real loop with the config's data, where compiling is that of the whole run; or "device".
    What a step computes is counted, not measured. profile: folder for a trace; empty: none.
    """
    config = config.copy_and_resolve_references()
    config.data.buckets = config.data.buckets[:1]
    if source == "device":
        return training.measure_on_device(config, steps, profile)
    config.train.update(
        steps=training.WARM_UP + steps, log_every=1, save_every=10**6, evaluate_every=0, profile=profile
    )
    with tempfile.TemporaryDirectory() as workdir, timing.compile_seconds() as compiling_seconds:
        train(config, workdir)
        lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines]
    seconds = [line["step_seconds"] for line in measured if "step_seconds" in line]  # the first has none
    counted = plan.operations(config, plan.make_program(config, jax.devices(), "train"))
    result = training.summarise(config, counted, seconds[-steps:])
    result["input_wait_seconds"] = statistics.median(line["input_wait_seconds"] for line in measured[-steps:])
    result["warm-up seconds"] = sum(seconds[:-steps])
    return result | {"compile_seconds": sum(compiling_seconds)}


def main() -> None:
    options = flags.FLAGS
    what, path = options.what, options.report
    before = os.getloadavg()
    compiling.set_up(options.optimization_level, options.xla_preset)
    if options.distributed:
        processes.start()
    if what in _ON_TWO_THREADS and hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it finds cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:_THREADS])
    if options.sweep:
        return _sweep(options)
    result = MEASUREMENTS[what](options)
    if jax.process_index() != 0:
        return
    print(table(result))
    if path:
        about = surroundings() | {"load_before": before}
        write_file(path, json.dumps({"what": what, "result": result, **about}, indent=1) + "\n")


def _sweep(options: Any) -> None:
    """One line of JSON a point, on the terminal as it is measured and in the report."""
    if options.what != "train":
        raise ValueError(f"--sweep is of training steps: --what={options.what} is not accepted with it")
    lines = []

    def measure(config: ConfigDict) -> dict[str, Any]:
        return measure_training(config, options.steps, options.input)

    about = surroundings()
    for row in training.sweep(options.config, options.sweep, measure):
        lines.append(json.dumps(row | {"what": options.what, "surroundings": about}))
        if jax.process_index() == 0:
            print(lines[-1], flush=True)
            if options.report:
                write_file(options.report, "".join(f"{line}\n" for line in lines))


def _define_flags() -> None:
    flags.DEFINE_enum("what", None, sorted(MEASUREMENTS), "What to measure.")
    # Overrides of single fields apply to the default, so it has to be there before flags are read.
    adversarial = any(argument.endswith("generator") for argument in sys.argv)
    default = "configs/in2out_tiny.py" if adversarial else "configs/m3ddm_small.py"
    config_flags.DEFINE_config_file("config", default, "Model of forward, experiment of train, flops and generator.")
    flags.DEFINE_string("clips", None, "Shards or folder of videos of data; synthetic scenes by default.")
    flags.DEFINE_string("model", None, "Model folder of outpaint; the one that comes with the project by default.")
    flags.DEFINE_string("report", None, "JSON file to write.")
    flags.DEFINE_integer("steps", _STEPS, "Of train: steps that are measured.", lower_bound=1)
    flags.DEFINE_enum("input", INPUTS[0], INPUTS, "Of train: the config's clips, or batches on the devices.")
    flags.DEFINE_string("sweep", "", "Of train: FIELD=VALUE,VALUE ... of config fields; every combination is measured.")
    flags.DEFINE_string("profile", None, "Of train and acceptance: folder for a profiler's trace of a few steps.")
    flags.DEFINE_enum("compare", "", ("", "torch"), "Of forward: the same network in PyTorch, on the same device.")
    flags.DEFINE_string("topology", "v5e:2x2", "Of transformer: devices to compile for, as in plan.")
    flags.DEFINE_bool("distributed", False, "Measure with the other processes that the environment tells of.")
    flags.DEFINE_enum("optimization_level", compiling.DEFAULT_LEVEL, compiling.LEVELS, "Of the compiler, as in train.")
    flags.DEFINE_enum("xla_preset", "", compiling.PRESETS, "Flags of XLA for a kind of accelerator; empty: none.")
    flags.mark_flag_as_required("what")


if __name__ == "__main__":
    _define_flags()
    cli.run("bench", main)
