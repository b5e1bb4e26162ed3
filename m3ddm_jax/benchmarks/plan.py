"""A config's training step, or its sampling, compiled for devices that need not be there: does it fit, what do devices
exchange, how much is to be computed. Nothing is run, and no weights or clips are needed."""

import dataclasses
import functools
import hashlib
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from m3ddm_jax.measure.chips import CHIPS, GIB
from m3ddm_jax.measure.collectives import find_collectives, summarise
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.models import registry
from m3ddm_jax.parallel.mesh import BATCH_AXES, batch_shards, check_batch_size, make_mesh, replicated
from m3ddm_jax.recipes import Recipe, make_recipe
from m3ddm_jax.recipes.base import check_platform, jit_step
from m3ddm_jax.training.encoding import encode_batch

TERA = 10**12
WHAT = ("train", "sample")
# What large models reach on accelerators where all goes well: what a step might take.
MFU = 0.4
# How a network is run when its operations are counted.
_PLAIN = {"remat": "none", "attention": "auto"}
_FILES = ("shards", "videos", "latents")
# What a TPU's compiler says of all that a program needs, or of what lives between its arguments and results alone.
_EXCEEDED = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm")
_EXCEEDED_BETWEEN = re.compile(r"temporaries \(([\d.]+)([KMG])\) exceeds available HBM \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """What is compiled: a jitted function, and the shapes of its arguments (state, batch, frozen networks)."""

    recipe: Recipe
    mesh: Mesh
    what: str
    jitted: Any
    arguments: tuple[Any, Any, Any]

    def lower(self) -> Any:
        with jax.set_mesh(self.mesh):
            return self.jitted.lower(*self.arguments)

    def count(self, function: Callable, *arguments: Any) -> int:
        """Operations of a function on all devices together."""
        with jax.set_mesh(self.mesh):
            return count_flops(function, *arguments).total


def with_depth(config: ConfigDict, depth: int) -> ConfigDict:
    """The config with so many blocks a level, at the widths that it has. Raises ValueError for other networks."""
    config = config.copy_and_resolve_references()
    if config.model.kind not in ("m3ddm", "globalpaint"):
        raise ValueError(f"the model is of kind {config.model.kind}: m3ddm and globalpaint have a depth")
    config.model.layers_per_block = depth
    return config


def make_program(config: ConfigDict, devices: Sequence[jax.Device], what: str) -> PlannedProgram:
    """The program of a config on devices. Raises ValueError where config, mesh and devices do not fit."""
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batch_size(mesh, config.train.batch_size, config.train.accumulate)
    check_platform(config, mesh)
    recipe = make_recipe(_standing_alone(config))
    frozen = {name: variables or _shapes_of(recipe, name) for name, variables in recipe.frozen.items()}
    batch = _batch_shapes(config, recipe, frozen)
    key = jax.random.key(config.train.seed)
    with jax.set_mesh(mesh):
        state = recipe.abstract_state(key, mesh)
    arguments = (
        state,
        _placed(batch, NamedSharding(mesh, P(BATCH_AXES))),
        _placed(frozen, replicated(mesh)),
    )
    jitted = jit_step(recipe, state, mesh) if what == "train" else jax.jit(recipe.complete)
    return PlannedProgram(recipe, mesh, what, jitted, arguments)


def _standing_alone(config: ConfigDict) -> ConfigDict:
    """The config without files: clips are drawn, and a frozen network that is not there is the published one."""
    config = config.copy_and_resolve_references()
    for section, kind in (("autoencoder", "autoencoder"), ("image_encoder", "openclip")):
        if section in config and not os.path.isdir(config[section].get("folder", ".")):
            config[section] = ConfigDict({"kind": kind})
    sources = [dict(source) for source in config.data.sources]
    drawn = {"kind": "synthetic", "path": "", "weight": 1.0}
    config.data.sources = tuple(drawn if source["kind"] in _FILES else source for source in sources)
    config.data.buckets = (max(config.data.buckets, key=math.prod),)
    config.data.num_threads = 1
    config.train.batch_size = 1
    return config


def _shapes_of(recipe: Recipe, name: str) -> Any:
    """Variables of an encoder that is there by its hyper-parameters alone."""
    return registry.abstract_variables(getattr(recipe.encoders, name))


def _batch_shapes(config: ConfigDict, recipe: Recipe, frozen: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the largest bucket: clips, or what is kept of them where the config's sources are latents."""
    with jax.set_mesh(make_mesh(devices=jax.devices("cpu")[:1])):
        clips = next(iter(recipe.dataset(0)))
    batch = {
        name: jax.ShapeDtypeStruct((config.train.batch_size, *value.shape[1:]), value.dtype)
        for name, value in clips.items()
        if value.dtype.kind != "U"
    }
    if any(source["kind"] == "latents" for source in config.data.sources):
        kept = {"mask": np.uint8, "fps": np.float32}
        encode = functools.partial(encode_batch, recipe.encoders, unknown=config.diffusion.unknown)
        encoded = jax.eval_shape(encode, frozen, batch)
        batch = {name: jax.ShapeDtypeStruct(x.shape, kept.get(name, np.float16)) for name, x in encoded.items()}
    return batch


def _placed(shapes: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def plan(config: ConfigDict, program: PlannedProgram, lowered: Any) -> dict[str, Any]:
    """Compiles what `program` has lowered: numbers by name, and rows of collectives under "collectives".

    Memory is bytes of one device in GiB, by XLA's plan. Raises ValueError where a TPU's compiler finds that it does not
    fit, saying by how much, and what would.
    """
    result = sizes(program) | operations(config, program)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used, limit = _excess(str(error), sum(_bytes(argument) for argument in program.arguments))
        raise ValueError(_does_not_fit(config, program, used, limit)) from None
    result["compile seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    result |= {
        "GiB of results that take no argument's place": _gib(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        "GiB of what lives between": _gib(memory.temp_size_in_bytes),
        "GiB of the program": _gib(memory.generated_code_size_in_bytes),
        "GiB together": _gib(total),
    }
    if chip := CHIPS.get(_kind(program.mesh)):
        if total > chip.memory:
            raise ValueError(_does_not_fit(config, program, total, chip.memory))
        result |= {"GiB of a device": _gib(chip.memory), "fits": f"yes, {_gib(chip.memory - total):.2f} GiB are left"}
    else:
        result["fits"] = "not known: a device of this kind has no memory of its own that is known"
    return result | {"collectives": summarise(find_collectives(compiled.as_text()))}


def sizes(program: PlannedProgram) -> dict[str, Any]:
    """Parameters of what is trained, and GiB of one device that the arguments take, by kind."""
    state, batch, frozen = program.arguments
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    result = {
        "devices": f"{program.mesh.size} x {_kind(program.mesh)}",
        "mesh": " x ".join(f"{axis}={size}" for axis, size in program.mesh.shape.items()),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    averaged = fields.pop("ema_params")
    for part, ending in (("parameters", "params"), ("optimizers", "opt_state")):
        found = [value for name, value in fields.items() if name.endswith(ending)]
        result[f"GiB of {part}"] = _gib(_bytes(found))
    result["GiB of averaged parameters"] = _gib(_bytes(averaged))
    return result | {"GiB of frozen networks": _gib(_bytes(frozen)), "GiB of the batch": _gib(_bytes(batch))}


def operations(config: ConfigDict, program: PlannedProgram) -> dict[str, Any]:
    """TFLOP of a run of the program without what rematerialisation repeats, counted from a trace."""
    state, batch, frozen = program.arguments
    plain = _standing_alone(config)
    plain.model.update({name: value for name, value in _PLAIN.items() if name in plain.model})
    recipe = make_recipe(plain)
    function = recipe.step if program.what == "train" else recipe.complete
    try:
        total = program.count(function, state, batch, frozen)
    except ValueError as error:
        return {"TFLOP": f"not counted: {error}"}
    result = {"TFLOP": total / TERA, "TFLOP a device": total / TERA / program.mesh.size}
    if hasattr(recipe, "encoders") and "video" in batch:
        encode = functools.partial(encode_batch, recipe.encoders, unknown=config.diffusion.unknown)
        result["TFLOP of frozen encoders"] = program.count(encode, frozen, batch) / TERA
    if chip := CHIPS.get(_kind(program.mesh)):
        result[f"seconds at {MFU:.0%} of the peak"] = total / program.mesh.size / chip.flops / MFU
    return result


def program_hash(lowered: Any, *facts: Any) -> str:
    """What tells a program, and the facts that its plan depends on besides, from others."""
    text = "\n".join([lowered.as_text(), jax.__version__, *map(str, facts)])
    return hashlib.sha256(text.encode()).hexdigest()


def _does_not_fit(config: ConfigDict, program: PlannedProgram, used: int, limit: int) -> str:
    """By how much, and the nearest mesh and accumulation that do: the state shrinks with fsdp, the rest with clips."""
    state, *others = (_bytes(argument) for argument in program.arguments)
    between = used - state - sum(others)
    mesh, accumulate = program.mesh.shape, config.train.accumulate
    clips = config.train.batch_size // (batch_shards(program.mesh) * accumulate)
    nearest = "no mesh and no accumulation are estimated to"
    for shards, parts in itertools.product(divisors(mesh["data"]), divisors(clips)):
        if state / shards + sum(others) + between / parts <= limit:
            fields = [f"mesh.data={mesh['data'] // shards}", f"mesh.fsdp={mesh['fsdp'] * shards}"] if shards > 1 else []
            fields += [f"train.accumulate={accumulate * parts}"] if parts > 1 else []
            nearest = f"the nearest that is estimated to: {' '.join(fields)}"
            break
    excess = _gib(used - limit)
    return (
        f"the program does not fit: {_gib(used):.2f} GiB of {_gib(limit):.2f} on a device, {excess:.2f} too many "
        f"({_gib(state):.2f} of them the state); {nearest}"
    )


def _excess(message: str, arguments: int) -> tuple[int, int]:
    """Bytes that a compiler found necessary and possible; raises ValueError with its message where it says neither.

    arguments: bytes of the program's.
    """
    found = _EXCEEDED.search(message)
    besides = 0
    if found is None:
        found, besides = _EXCEEDED_BETWEEN.search(message), arguments
    if found is None:
        raise ValueError(f"the compiler failed: {message.partition(chr(10))[0]}")
    used, unit, limit, limit_unit = found.groups()
    return int(float(used) * _UNITS[unit]) + besides, int(float(limit) * _UNITS[limit_unit])


def divisors(number: int) -> list[int]:
    """What divides a number, in order."""
    return [part for part in range(1, number + 1) if number % part == 0]


def _bytes(tree: Any) -> int:
    """Of the part of each array that lies on one device; random keys aside."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _gib(count: int) -> float:
    return count / GIB


def _kind(mesh: Mesh) -> str:
    return mesh.devices.flat[0].device_kind
