"""Measure speed and memory: python -m m3ddm_jax.bench --what=forward|data|outpaint|train|flops [--report=FILE].

Prints a table and, with --report, writes the same as JSON together with versions, machine and load.

forward   one float32 forward of the config's U-Net beside a 3x3 convolution of PyTorch, both on two threads
data      clips a second of the input pipeline beside bare decoding in as many threads
outpaint  seconds and peak memory of the command from a cold start, and its peak memory for short and long videos
train     seconds of a training step of the config, and frames a second
flops     operations of the config's U-Net on one window, counted and not run, beside the official schedule's; what it
          computes by matrix products, temporal convolutions among them, counts as such
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from data import throughput
from m3ddm_jax import command
from m3ddm_jax.diffusion.guidance import Guidance
from m3ddm_jax.diffusion.solvers import make_solver
from m3ddm_jax.measure import memory, timing
from m3ddm_jax.measure.flops import Flops, count_flops
from m3ddm_jax.models import registry
from m3ddm_jax.pipelines.m3ddm import PRESETS
from m3ddm_jax.recipes.base import build_model
from m3ddm_jax.recipes.diffusion import build_schedule
from m3ddm_jax.train import train

THREADS = 2  # of the forward comparison
REPEATS = 5
ROOT = pathlib.Path(__file__).resolve().parents[1]
MIB = 2**20
TERA = 10**12
OFFICIAL_BRANCHES = 4  # an evaluation, of which one is thrown away


def bench_forward(config: ConfigDict) -> dict[str, Any]:
    """Seconds of one float32 forward of the U-Net: 8 frames of latents 32x32, 4 global frames of 32x32.

    The yardstick, run in turns with it: PyTorch's 3x3 convolution 320 -> 320 on [16, 320, 32, 32].
    """
    hyper = {**config.model, "dtype": "float32", "remat": False}
    model = registry.build(**hyper)
    # Any weights do, and numbers from numpy spare the compilation of their initialisation.
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0, 0.02, leaf.shape), leaf.dtype), registry.abstract_variables(model)
    )
    shape = (1, 8, 32, 32, hyper["latent_channels"])
    latents = jax.random.normal(jax.random.key(1), shape)
    conditions = {
        "timestep": jnp.array([500.0]),
        "fps": jnp.array([8.0]),
        "global_latents": jax.random.normal(jax.random.key(2), (1, 4, *shape[2:])),
    }
    arguments = (variables, latents, jnp.ones((*shape[:-1], 1)), latents)
    forward = jax.jit(lambda arguments, conditions: model.apply(*arguments, **conditions))
    functions = {"forward": lambda: forward(arguments, conditions)}
    if convolution := _torch_convolution():
        functions["convolution"] = convolution
    times = timing.time_together(functions, REPEATS)
    result = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))}
    for name, time in times.items():
        result |= {f"{name}_seconds": time.median, f"{name}_spread": time.spread}
    if convolution:
        result["forward_in_convolutions"] = times["forward"].median / times["convolution"].median
    else:
        result["note"] = "no yardstick: PyTorch is not installed, or JAX does not run on the CPU"
    return result


def _torch_convolution() -> Callable[[], Any] | None:
    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return None
    import torch

    torch.set_num_threads(THREADS)
    layer = torch.nn.Conv2d(320, 320, 3, padding=1)
    images = torch.randn(16, 320, 32, 32)

    @torch.inference_mode()
    def run():
        layer(images)

    return run


def bench_outpaint(model: str | None) -> dict[str, Any]:
    """The command as a user runs it, in a process of its own, on synthetic scenes outpainted to 16:9."""
    options = [f"--model={model}"] if model else []
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        scene, wide = pathlib.Path(folder, "scene.mp4"), pathlib.Path(folder, "wide.mp4")
        for name, side, frames, steps in [
            ("cold start, 512x512, 16 frames", 512, 16, None),
            ("256x256, 64 frames, 1 step", 256, 64, 1),
            ("256x256, 512 frames, 1 step", 256, 512, 1),
        ]:
            run_module("data.synthetic", scene, f"--size={side}x{side}", f"--frames={frames}")
            limit = [] if steps is None else [f"--steps={steps}"]
            run = run_module("m3ddm_jax.outpaint", scene, wide, "--aspect=16:9", *options, *limit)
            result |= {f"{name}: seconds": run.seconds, f"{name}: peak MiB": run.peak_bytes / MIB}
    return result


def run_module(module: str, *arguments) -> memory.ChildRun:
    """Runs one of our entry points in a process of its own; raises ValueError with its last line where it fails."""
    run = memory.run_child([sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT)
    if run.returncode:
        raise ValueError(f"{module} failed: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return run


def bench_train(config: ConfigDict) -> dict[str, Any]:
    """Median step of the real training loop with the config's data, on its first bucket; two steps warm it up."""
    config = config.copy_and_resolve_references()
    config.data.buckets = config.data.buckets[:1]
    config.train.update(steps=2 + REPEATS, log_every=1, save_every=1000, sample_every=0)
    with tempfile.TemporaryDirectory() as workdir:
        train(config, workdir)
        lines = pathlib.Path(workdir, "metrics.jsonl").read_text().splitlines()[2:]
    steps = [json.loads(line) for line in lines]
    names = ("step_seconds", "frames_per_second", "input_wait_seconds")
    medians = {name: statistics.median(step[name] for step in steps) for name in names}
    return medians | {"peak MiB": memory.peak_rss() / MIB}


def bench_flops(config: ConfigDict) -> dict[str, Any]:
    """TFLOP of the U-Net on a window of the config's sample section, square and as many lines high as that says.

    Beside it the same window by the official schedule: four branches an evaluation, each of which encodes the global
    frames anew and makes keys and values of them for every frame.
    """
    sample, model = config.sample, build_model(config.model)
    variables = registry.abstract_variables(model)
    tokens, context, branch = _count_parts(config, model, variables)
    guidance = Guidance(sample.guidance_local, sample.guidance_global, tuple(sample.guidance_interval))
    schedule = build_schedule(config.diffusion)
    solver = make_solver(sample.solver, schedule, sample.steps, sample.strength)
    branches = guidance.weights()
    contexts = {global_given for _, global_given in branches}
    evaluation = len(branches) * branch.total
    levels = solver.timesteps / schedule.num_timesteps
    window = sum(evaluation if guidance.acts(level) else branch.total for level in levels)
    official_branch = branch.total + tokens.total + sample.num_frames * (context.total - tokens.total)
    official = OFFICIAL_BRANCHES * official_branch
    official_window = PRESETS["official"]["steps"] * official
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "frames of a window": f"{sample.num_frames} of {sample.lines}x{sample.lines}",
        "global frames": f"{sample.global_frames} of {sample.global_size}x{sample.global_size}",
        "TFLOP a branch": branch.total / TERA,
        "TFLOP a branch: convolutions": branch.convolution / TERA,
        "TFLOP a branch: matrix products": branch.matmul / TERA,
        "TFLOP of contexts, once a video": len(contexts) * context.total / TERA,
        "branches an evaluation": len(branches),
        "TFLOP an evaluation": evaluation / TERA,
        "evaluations a window": len(levels),
        "TFLOP a window": window / TERA,
        "official TFLOP a branch": official_branch / TERA,
        "official TFLOP an evaluation": official / TERA,
        "official TFLOP a window": official_window / TERA,
        "official / ours, an evaluation": official / evaluation,
        "official / ours, a window": official_window / window,
    }


def _count_parts(config: ConfigDict, model: nn.Module, variables: Any) -> tuple[Flops, Flops, Flops]:
    """Operations of a video's context tokens, of its whole context (with keys and values), of a branch given that."""
    sample = config.sample
    downscale = config.autoencoder.get("patch_size", 8)  # all but the patch codec reduce by 8

    def latents(frames, size, channels=model.latent_channels):
        return jax.ShapeDtypeStruct((1, frames, size // downscale, size // downscale, channels), jnp.float32)

    def encode_context(variables, global_latents):
        return model.apply(variables, global_latents, method="encode_context")

    def branch(variables, latents, mask, context):
        return model.apply(variables, latents, mask, latents, timestep=0, fps=0, context=context)

    noisy, mask = latents(sample.num_frames, sample.lines), latents(sample.num_frames, sample.lines, channels=1)
    global_latents = latents(sample.global_frames, sample.global_size)
    context = jax.eval_shape(encode_context, variables, global_latents)
    return (
        count_flops(partial(model.apply, method="context_tokens"), variables, global_latents),
        count_flops(encode_context, variables, global_latents),
        count_flops(branch, variables, noisy, mask, context),
    )


def surroundings() -> dict[str, Any]:
    """Versions, machine and load that numbers belong to."""
    packages = ("jax", "jaxlib", "flax", "numpy", "torch", "av", "grain")
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": os.getloadavg(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """One line a number."""
    width = max(map(len, result))
    return "\n".join(
        f"{name.ljust(width)}  {value:.4g}" if isinstance(value, float) else f"{name.ljust(width)}  {value}"
        for name, value in result.items()
    )


def measure(what: str) -> dict[str, Any]:
    """The numbers that --what names."""
    if what == "forward":
        if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it finds cores
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
        return bench_forward(flags.FLAGS.config)
    if what == "data":
        return throughput.measure(flags.FLAGS.clips)
    if what == "outpaint":
        return bench_outpaint(flags.FLAGS.model)
    if what == "flops":
        return bench_flops(flags.FLAGS.config)
    return bench_train(flags.FLAGS.config)


def main() -> None:
    what, path = flags.FLAGS.what, flags.FLAGS.report
    before = os.getloadavg()
    result = measure(what)
    print(table(result))
    if path:
        about = surroundings() | {"load_before": before}
        pathlib.Path(path).write_text(json.dumps({"what": what, "result": result, **about}, indent=1) + "\n")


def _define_flags() -> None:
    flags.DEFINE_enum("what", None, ["forward", "data", "outpaint", "train", "flops"], "What to measure.")
    config_flags.DEFINE_config_file("config", "configs/m3ddm_small.py", "Model of forward, experiment of train, flops.")
    flags.DEFINE_string("clips", None, "Shards or folder of videos of data; synthetic scenes by default.")
    flags.DEFINE_string("model", None, "Model folder of outpaint; the one that comes with the project by default.")
    flags.DEFINE_string("report", None, "JSON file to write.")
    flags.mark_flag_as_required("what")


if __name__ == "__main__":
    _define_flags()
    command.run("bench", main)
