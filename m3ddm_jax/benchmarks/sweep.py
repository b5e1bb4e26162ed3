"""Which mesh and which rematerialisation a config should have: an estimate for all of them, before any is compiled."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from m3ddm_jax.benchmarks.plan import MFU, PlannedProgram, divisors, make_program
from m3ddm_jax.measure.chips import CHIPS, GIB
from m3ddm_jax.measure.peak_memory import equations, peak
from m3ddm_jax.models.remat import REMAT
from m3ddm_jax.parallel.constrain import is_wide
from m3ddm_jax.parallel.mesh import AXES, batch_shards, check_batch_size, make_mesh
from m3ddm_jax.parallel.rules import partition_spec
from m3ddm_jax.recipes.base import build_model
from m3ddm_jax.types import Denoiser

# Bytes a second that a device exchanges with others, and with its host. Source: the makers' data sheets, all links of a
# TPU together; of the host a PCIe link that devices share.
_LINKS = {
    "TPU v4": 150e9,
    "TPU v5 lite": 200e9,
    "TPU v5": 600e9,
    "TPU v6 lite": 448e9,
    "TPU7x": 600e9,
    "NVIDIA A100-SXM4-40GB": 600e9,
    "NVIDIA A100-SXM4-80GB": 600e9,
    "NVIDIA H100 80GB HBM3": 900e9,
    "NVIDIA H200": 900e9,
    "NVIDIA B200": 1800e9,
}
_HOST_LINK = 8e9
# Devices of a kind that is not known count as these: their seconds mean nothing, their order does.
_YARDSTICK = "TPU v5 lite"
# Modules whose results, and whose gradients of inputs, `tensor` sums between devices (parallel.rules); and of how many
# products one of these sums is.
_SUMMED = {"to_out_0": 1, "net_2": 1, "temporal_conv": 3}
_IN_SUMMED = re.compile(rf"\b({'|'.join(_SUMMED)})\b")


@dataclasses.dataclass(frozen=True)
class Traced:
    """What one clip takes, by one policy of rematerialisation.

    operations, about; wide: the share of them that `tensor` splits. In bytes: activations, the most that is kept at
    once of values that do not have the shape of a parameter; context, tensor and host, what is exchanged where frames
    are split, where products are, and with the host.
    """

    operations: float
    wide: float
    activations: float
    context: float
    tensor: float
    host: float


def sweep(config: ConfigDict, devices: Sequence[jax.Device]) -> dict[str, dict[str, float]]:
    """Every mesh that fills the devices and takes the batch of a training step, with every policy of rematerialisation,
    the best first: overrides of the config -> estimates for a device.

    GiB: the state as the rules split it; between, gradients and what the trace of a clip keeps at once, more than a
    compiler needs that fuses; `tensor` counts as saving nothing of that. GiB exchanged: what rings send of parameters
    and gradients each micro-batch, and of activations where frames or products are split; slices count as one. Seconds:
    operations at the usual share of the peak, then exchanges as fast as links are. What is estimated not to fit comes
    last. Raises ValueError where no mesh takes the batch.
    """
    policies = REMAT if "remat" in config.model else (None,)
    programs = {remat: _alone(_changed(config, _remat(remat)), devices) for remat in policies}
    shapes = _state(programs[policies[0]])
    traces = {remat: _trace(program) for remat, program in programs.items()}
    found = {}
    for mesh, overrides in _meshes(config, devices, shapes):
        for remat, traced in traces.items():
            written = " ".join(f"{name}={value}" for name, value in (overrides | _remat(remat)).items())
            found[written] = _estimate(traced, shapes, mesh, config.train.batch_size, overrides["train.accumulate"])
    if not found:
        raise ValueError(f"no mesh of {len(devices)} device(s) takes a batch of {config.train.batch_size} clips")
    return dict(sorted(found.items(), key=lambda item: (item[1]["GiB too many"], item[1]["seconds"])))


def overridden(config: ConfigDict, written: str) -> ConfigDict:
    """The config with overrides as `sweep` writes them."""
    values = dict(part.split("=") for part in written.split())
    return _changed(config, {name: int(value) if value.isdigit() else value for name, value in values.items()})


def _changed(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(overrides)
    return config


def _remat(remat: str | None) -> dict[str, str]:
    return {} if remat is None else {"model.remat": remat}


def _meshes(
    config: ConfigDict, devices: Sequence[jax.Device], shapes: dict[str, jax.ShapeDtypeStruct]
) -> Iterator[tuple[Mesh, dict[str, int]]]:
    """Meshes that take the batch, each with the overrides that make it; those aside where `tensor` splits nothing."""
    axes = [axis for axis in AXES if axis in config.mesh]
    for sizes in itertools.product(divisors(len(devices)), repeat=len(axes)):
        if math.prod(sizes) != len(devices):
            continue
        sizes = dict(zip(axes, sizes, strict=True))
        tensor, context = sizes.get("tensor", 1), sizes.get("context", 1)
        if tensor > 1 and _bytes(shapes, sizes.get("fsdp", 1), tensor) == _bytes(shapes, sizes.get("fsdp", 1), 1):
            continue
        if not _takes_context(config, context):
            continue
        try:
            mesh = make_mesh(**sizes, devices=devices)
            shards = batch_shards(mesh)
            # Where frames are split a device works at one clip at a time.
            accumulate = config.train.accumulate if context == 1 else max(config.train.batch_size // shards, 1)
            check_batch_size(mesh, config.train.batch_size, accumulate)
        except ValueError:
            continue
        yield mesh, {f"mesh.{axis}": size for axis, size in sizes.items()} | {"train.accumulate": accumulate}


def _takes_context(config: ConfigDict, context: int) -> bool:
    if context == 1:
        return True
    model = build_model(config.model)
    return isinstance(model, Denoiser) and model.mesh_limits(config.data.num_frames)["context"] % context == 0


def _alone(config: ConfigDict, devices: Sequence[jax.Device]) -> PlannedProgram:
    """The program of one clip; on two devices that split its frames where the config can, for these to be seen."""
    split = len(devices) > 1 and "context" in config.mesh and _takes_context(config, 2)
    one = {f"mesh.{axis}": 1 for axis in config.mesh} | ({"mesh.context": 2} if split else {})
    one |= {"train.batch_size": 1, "train.accumulate": 1}
    return make_program(_changed(config, one), devices[: 2 if split else 1], "train")


def _state(program: PlannedProgram) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the state by their path, random keys aside."""
    state, *_ = program.arguments
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    return {name: leaf for name, leaf in named.items() if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)}


def _bytes(shapes: dict[str, jax.ShapeDtypeStruct], fsdp: int, tensor: int) -> float:
    """Of one device."""
    split = {"fsdp": fsdp, "tensor": tensor, None: 1}
    return sum(
        leaf.size
        * leaf.dtype.itemsize
        / math.prod(split[axis] for axis in partition_spec(name, leaf.shape, fsdp, tensor))
        for name, leaf in shapes.items()
    )


def _trace(program: PlannedProgram) -> Traced:
    """Of the program of one clip."""
    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(program.recipe.step)(*program.arguments)
    state, *_ = program.arguments
    parameters = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    platform = {"gpu": "cuda"}.get(name := program.mesh.devices.flat[0].platform, name)
    sums = dict.fromkeys(("products", "wide", "context", "tensor", "host"), 0.0)
    for eqn, times in equations(jaxpr):
        for name, amount in _sums(eqn, parameters):
            sums[name] += times * amount
    return Traced(
        operations=sums["products"],
        wide=sums["wide"] / max(sums["products"], 1),
        activations=peak(jaxpr, lambda aval: _kept(aval) if aval.shape not in parameters else 0.0, platform),
        **{name: sums[name] for name in ("context", "tensor", "host")},
    )


def _sums(eqn: JaxprEqn, parameters: set[tuple[int, ...]]) -> Iterator[tuple[str, float]]:
    """What an operation adds to the sums of `_trace`."""
    kind, made = eqn.primitive.name, eqn.outvars[0].aval if eqn.outvars else None
    if kind in ("dot_general", "conv_general_dilated"):
        factor, wide = _products(eqn)
        yield "products", factor
        yield "wide", factor if wide else 0.0
        activation = made.shape not in parameters and made.ndim > 2 and is_wide(made.shape[-1])
        if activation and (module := _IN_SUMMED.search(str(eqn.source_info.name_stack))):
            yield "tensor", _size(made) / _SUMMED[module[1]]
    elif kind == "sharding_constraint":
        spec = eqn.params["sharding"].spec
        if len(spec) > 2 and spec[2] == "context":  # cells, where frames were split (parallel.constrain)
            yield "context", _size(made)
    elif kind == "device_put":
        yield "host", 2 * sum(_size(variable.aval) - _kept(variable.aval) for variable in eqn.outvars)  # and back


def _products(eqn: JaxprEqn) -> tuple[float, bool]:
    """Of a matrix product or a convolution: operations, about, and whether it is of a wide level, in and out."""
    left, right, made = (variable.aval.shape for variable in (*eqn.invars, *eqn.outvars))
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        inner, features = math.prod(left[axis] for axis in contracted), made[-1]
        return 2.0 * math.prod(made) * inner, is_wide(inner) and is_wide(features)
    _, axes, _ = eqn.params["dimension_numbers"]
    inputs, features = right[axes[1]], right[axes[0]]
    return 2.0 * math.prod(made) * math.prod(right) / features, is_wide(inputs) and is_wide(features)


def _kept(aval: Any) -> float:
    """Bytes in a device's own memory."""
    return 0.0 if "host" in str(getattr(aval, "memory_space", "")).lower() else _size(aval)


def _size(aval: Any) -> float:
    return 0.0 if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key) else float(aval.size * aval.dtype.itemsize)


def _estimate(
    traced: Traced, shapes: dict[str, jax.ShapeDtypeStruct], mesh: Mesh, batch_size: int, accumulate: int
) -> dict[str, float]:
    """The numbers of `sweep` for a mesh."""
    data, fsdp, tensor, context = (mesh.shape[axis] for axis in AXES)
    kind = mesh.devices.flat[0].device_kind
    clips = batch_size // batch_shards(mesh)  # of a device
    state = _bytes(shapes, fsdp, tensor)
    parameters = {name: leaf for name, leaf in shapes.items() if name.split("/")[0] == "params"}
    held, whole = _bytes(parameters, fsdp, tensor), _bytes(parameters, 1, tensor)
    gradients = held if accumulate == 1 else 2 * held  # the sum, and those of a micro-batch
    between = gradients + traced.activations * clips / accumulate / context
    # Parameters are gathered forwards and backwards, gradients scattered, and then summed over who holds the same part.
    weights = 3 * whole * (fsdp - 1) / fsdp + 2 * held * (data * context - 1) / (data * context)
    activations = traced.context * (context - 1) / context + 2 * traced.tensor * (tensor - 1) / tensor
    exchanged = weights * accumulate + activations * clips / context
    operations = traced.operations * clips / context * (1 - traced.wide + traced.wide / tensor)
    peak_flops = CHIPS[kind if kind in CHIPS else _YARDSTICK].flops
    seconds = operations / peak_flops / MFU + exchanged / _LINKS[kind if kind in _LINKS else _YARDSTICK]
    memory = CHIPS[kind].memory if kind in CHIPS else math.inf
    return {
        "GiB of the state": state / GIB,
        "GiB between": between / GIB,
        "GiB too many": max(state + between - memory, 0) / GIB,
        "GiB exchanged": exchanged / GIB,
        "seconds": seconds + traced.host * clips / context / _HOST_LINK,
    }
