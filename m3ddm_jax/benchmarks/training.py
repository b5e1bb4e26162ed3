"""Training steps on batches that lie on the devices already, and sweeps over a config's fields."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from m3ddm_jax.benchmarks import plan
from m3ddm_jax.measure import memory, speed
from m3ddm_jax.training.profile import profiled

WARM_UP = 2
"""Steps before those that are measured."""
SCHEMA = 1
"""Version of the lines that `sweep` yields."""


def summarise(
    config: ConfigDict, counted: dict[str, Any], seconds: Sequence[float], moved: float | None = None
) -> dict[str, Any]:
    """Numbers of training steps by name: percentiles, rates, operations, MFU, memory.

    counted: as `plan.operations` has them. moved: bytes that a step moves on a device, where they are known.
    """
    device, steps = jax.devices()[0], speed.percentiles(seconds)
    median, clips = steps["step seconds p50"], config.train.batch_size
    result = {"devices": f"{jax.device_count()} x {device.device_kind}", "steps": len(seconds), **steps}
    result |= {"clips_per_second": clips / median, "frames_per_second": clips * config.data.num_frames / median}
    result |= counted | plan.speed_of(counted, median, jax.device_count(), device.device_kind)
    if isinstance(counted["TFLOP"], float):
        own = counted["TFLOP"] * speed.TERA / jax.device_count()
        result |= speed.roofline(own, moved, device.device_kind)
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return result | {"peak MiB": (peak or memory.peak_rss()) / 2**20}


def measure_on_device(config: ConfigDict, steps: int, profile: str = "") -> dict[str, Any]:
    """`steps` training steps of a config, after WARM_UP more, with random numbers for state and batch.

    profile: folder for a trace of some of them; empty: none.
    """
    program = plan.make_program(config, jax.devices(), "train")
    counted = plan.operations(config, program)
    start = time.perf_counter()
    compiled = program.lower().compile()
    compile_seconds = time.perf_counter() - start
    state, batch, frozen = _random(program.arguments)
    seconds = []
    with profiled(compiled, profile, skipped=WARM_UP) as step:
        for _ in range(WARM_UP + steps):
            start = time.perf_counter()
            state, metrics = step(state, batch, frozen)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - start)
    moved = (compiled.cost_analysis() or {}).get("bytes accessed")
    result = summarise(config, counted, seconds[WARM_UP:], moved)
    return result | {"warm-up seconds": sum(seconds[:WARM_UP]), "compile_seconds": compile_seconds}


def _random(shapes: Any) -> Any:
    """Arrays of shapes, laid out as these are: positive numbers to 0.02, zeros for whole ones, a key for keys."""

    def fill(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        # Numbers that differ from their neighbours, and compile in no time.
        places = [jax.lax.broadcasted_iota(jnp.float32, leaf.shape, axis) for axis in range(len(leaf.shape))]
        angles = sum((factor * place for factor, place in enumerate(places, 3)), jnp.zeros(leaf.shape))
        return (0.01 + 0.01 * jnp.cos(angles)).astype(leaf.dtype)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    return jax.jit(lambda: jax.tree.map(fill, shapes), out_shardings=shardings)()


def sweep(
    config: ConfigDict, written: str, measure: Callable[[ConfigDict], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """One row a point of a sweep: its overrides and what `measure` returns of the config with them, or why it has none.

    written: FIELD=VALUE,VALUE ... of config fields, joined by spaces, such as "train.batch_size=1,2 model.remat=none".
    Raises ValueError for a field that the config does not have.
    """
    for point in points(config, written):
        row = {"schema": SCHEMA, "point": point}
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(point)
        try:
            yield row | {"result": measure(changed)}
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            yield row | {"error": " ".join(str(error).split())[:300]}


def points(config: ConfigDict, written: str) -> list[dict[str, Any]]:
    """The overrides of each point of a sweep, values of the types that the config has; as `sweep` says."""
    axes = {}
    for part in written.split():
        name, _, values = part.partition("=")
        section, _, field = name.rpartition(".")
        if not values or section not in config or field not in config[section]:
            raise ValueError(f"sweep over {part!r}: FIELD=VALUE,VALUE of the config's fields is accepted")
        kind = type(config[section][field])
        try:
            axes[name] = [kind(value) if kind in (int, float) else value for value in values.split(",")]
        except ValueError:
            raise ValueError(f"sweep over {part!r}: values of {name} are of type {kind.__name__}") from None
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
