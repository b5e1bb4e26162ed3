"""E2FGVI, the generator of adversarial training: its forward pass, its deformable convolution, its discriminator."""

import importlib.util
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from ml_collections import ConfigDict

from m3ddm_jax.losses.outpainting import reconstruction_terms
from m3ddm_jax.measure import memory, timing
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.measure.program import compile_program, random_arrays
from m3ddm_jax.models import registry
from m3ddm_jax.models.deformable import DeformableAlignment, deformable_conv
from m3ddm_jax.models.e2fgvi import E2FGVI
from m3ddm_jax.parallel.mesh import make_mesh
from m3ddm_jax.recipes.adversarial import AdversarialRecipe
from m3ddm_jax.training.encoding import to_unit_range
from m3ddm_jax.training.gan_state import GanState
from m3ddm_jax.training.update import apply_update
from m3ddm_jax.types import VideoBatch

THREADS = 2
REPEATS = 5
MIB = 2**20
TERA = 10**12
SLIM = E2FGVI(width=8, flow_width=4, hidden=64, depth=2, ffn_channels=5)


def measure(config: ConfigDict) -> dict[str, Any]:
    """All that this module measures, the training step being the config's, whose model is an e2fgvi.

    Raises ValueError for another model.
    """
    if config.model.kind != "e2fgvi":
        raise ValueError(
            f"the model is of kind {config.model.kind}: e2fgvi is accepted, as in configs/in2out.py and in2out_tiny.py"
        )
    return {
        **measure_forward(E2FGVI(), height=240, width=432, num_local=6, references=4),
        **compare_with_torch(SLIM, height=120, width=108, num_local=3, references=1),
        **measure_deformable_conv(height=60, width=108, channels=128, groups=16),
        **measure_discriminator(config),
    }


def measure_forward(module: E2FGVI, *, height: int, width: int, num_local: int, references: int) -> dict[str, Any]:
    """A forward pass with random weights, to all frames, as in training, and to the local ones, as in outpainting."""
    variables, frames = _inputs(module, (1, num_local + references, height, width, 3))
    result = {"generator frames": f"{num_local} local and {references} references of {width}x{height}"}
    calls = {}
    for name, local_only in (("all frames", False), ("local frames", True)):
        forward = partial(module.apply, num_local=num_local, local_only=local_only)
        program = compile_program(forward, variables, frames)
        calls[name] = partial(program.call, variables, frames)
        result |= {
            f"generator, {name}: TFLOP": count_flops(forward, variables, frames).total / TERA,
            f"generator, {name}: compile seconds": program.compile_seconds,
            f"generator, {name}: temporary MiB": program.temp_bytes / MIB,
        }
    seconds = _seconds(calls, "generator, ")
    return result | seconds | {"generator: peak MiB of the process": memory.peak_rss() / MIB}


def compare_with_torch(module: E2FGVI, *, height: int, width: int, num_local: int, references: int) -> dict[str, Any]:
    """A forward pass beside a plain PyTorch statement of the same arithmetic, in turns, and how far apart they are."""
    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return {"slim generator": "no yardstick: PyTorch is not installed, or JAX does not run on the CPU"}
    import torch

    from m3ddm_jax.benchmarks.torch_e2fgvi import PlainE2FGVI

    torch.set_num_threads(THREADS)
    variables, frames = _inputs(module, (1, num_local + references, height, width, 3))
    forward = jax.jit(partial(module.apply, num_local=num_local))
    plain = PlainE2FGVI(module, variables)
    images = torch.tensor(rearrange(np.asarray(frames), "b t h w c -> b t c h w"))
    expected = rearrange(plain(images, num_local).numpy(), "b t c h w -> b t h w c")
    calls = {"here": lambda: forward(variables, frames), "PyTorch": lambda: plain(images, num_local)}
    seconds = _seconds(calls, "slim generator, ")
    return seconds | {
        "slim generator, here / PyTorch": seconds["slim generator, here: seconds"]
        / seconds["slim generator, PyTorch: seconds"],
        "slim generator, largest difference": float(jnp.abs(forward(variables, frames)[0] - expected).max()),
    }


def measure_deformable_conv(*, height: int, width: int, channels: int, groups: int) -> dict[str, Any]:
    """Temporary memory of a deformable convolution of two frames' features, and of the alignment that it is part of, as
    multiples of those features."""
    maps = jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
    both = jax.ShapeDtypeStruct((1, height, width, 2 * channels), jnp.float32)
    flow = jax.ShapeDtypeStruct((1, height, width, 2), jnp.float32)
    taps = jax.ShapeDtypeStruct((1, height, width, groups, 9), jnp.float32)
    offsets = jax.ShapeDtypeStruct((*taps.shape, 2), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 2 * channels, channels), jnp.float32)
    alignment = DeformableAlignment(channels, groups)
    inputs = (maps, maps, maps, flow, flow)
    variables = jax.eval_shape(alignment.init, jax.random.key(0), *inputs)
    result = {}
    for name, function, arguments in (
        ("deformable convolution", deformable_conv, (both, offsets, taps, kernel)),
        ("alignment", alignment.apply, (variables, *inputs)),
    ):

        def with_gradients(cotangent, *arguments, function=function):
            return jax.vjp(function, *arguments)[1](cotangent)

        for what, program in (
            ("forward", compile_program(function, *arguments)),
            ("with gradients", compile_program(with_gradients, maps, *arguments)),
        ):
            result[f"{name}, {what}: temporary / input"] = program.temp_bytes / (4 * both.size)
    return result


def measure_discriminator(config: ConfigDict) -> dict[str, Any]:
    """Seconds of a training step of the config on random clips, beside the same without discriminator, in turns."""
    config = config.copy_and_resolve_references()
    config.train.init_from = ""
    config.adversarial.weights.flow = 0.0  # from random weights there is no flow to learn
    recipe, mesh, key = AdversarialRecipe(config), make_mesh(devices=jax.devices()[:1]), jax.random.key(0)
    batch = _clips(config)
    with jax.set_mesh(mesh):
        state = recipe.begin(key, recipe.abstract_state(key, mesh), batch, {})
        functions = {"training step": lambda state, batch: recipe.step(state, batch, {})}
        functions["step without discriminator"] = partial(_step_alone, recipe, config)
        programs = {name: compile_program(function, state, batch) for name, function in functions.items()}
        result = _seconds({name: partial(program.call, state, batch) for name, program in programs.items()})
        operations = [count_flops(function, state, batch).total for function in functions.values()]
    whole, alone = (result[f"{name}: seconds"] for name in functions)
    return result | {
        "discriminator's share of a step": 1 - alone / whole,
        "discriminator's share of its operations": 1 - operations[1] / operations[0],
    }


def _step_alone(recipe: AdversarialRecipe, config: ConfigDict, state: GanState, batch: VideoBatch) -> GanState:
    """The update that a generator makes on the same clips when nobody judges it."""
    num_local, weights = config.data.num_frames, config.adversarial.weights
    truth, mask = to_unit_range(batch["video"]), batch["mask"].astype(jnp.float32)

    def loss(params):
        made, _ = recipe.model.apply({"params": params}, jnp.where(mask > 0, 0.0, truth), num_local=num_local)
        terms = reconstruction_terms(made, truth, mask)
        return weights.hole * terms["hole"] + weights.valid * terms["valid"]

    gradients, train = jax.grad(loss)(state.params), config.train
    state, _ = apply_update(
        state,
        gradients,
        recipe.optimizers.generator,
        spike_patience=train.spike_patience,
        ema_decay=train.ema_decay,
    )
    return state.replace(step=state.step + 1)


def _clips(config: ConfigDict) -> VideoBatch:
    """A batch of noise of the config's first bucket, whose left quarter is to be generated."""
    data, rng = config.data, np.random.default_rng(0)
    shape = (config.train.batch_size, data.num_frames + data.references, *data.buckets[0])
    mask = np.broadcast_to(np.arange(shape[-1]) < shape[-1] // 4, shape).astype(np.uint8)
    video = rng.integers(0, 256, (*shape, 3), np.uint8)
    return {"video": jnp.asarray(video), "mask": jnp.asarray(mask[..., None])}


def _inputs(module: E2FGVI, shape: tuple[int, ...]) -> tuple[Any, jax.Array]:
    """Random variables and frames in [-1, 1]."""
    frames = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    return random_arrays(registry.abstract_variables(module)), jnp.asarray(frames)


def _seconds(calls: dict[str, Any], prefix: str = "") -> dict[str, float]:
    result = {}
    for name, time in timing.time_together(calls, REPEATS).items():
        result |= {f"{prefix}{name}: seconds": time.median, f"{prefix}{name}: spread": time.spread}
    return result
