"""What an accelerator that nobody has tried yet must show: right numbers, and fast steps."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from configs import m3ddm, m3ddm_small
from m3ddm_jax.benchmarks import flops, training
from m3ddm_jax.benchmarks.limits import GIB
from m3ddm_jax.measure import speed, timing
from m3ddm_jax.measure.flops import count_flops
from m3ddm_jax.measure.program import random_arrays
from m3ddm_jax.models import registry
from m3ddm_jax.models.attention import attention
from m3ddm_jax.models.weight_gradients import convolve
from m3ddm_jax.recipes.base import build_model

SECONDS = 480
"""After so long no further check is begun."""
# Errors of bfloat16, as shares of the largest number and, of a whole network, of the root of the mean square.
_ATTENTION_ERROR, _GRADIENT_ERROR, _NETWORK_ERROR = 2e-2, 2e-2, 5e-2
_MFU = {"forward": 0.45, "train": 0.40}
_REPEATS, _STEPS, _SIDE, _CLIPS = 10, 10, 8192, 8
# Queries, keys and width of a head: M3DDM's self- and cross-attention at 256x256, and a padded one.
ATTENTIONS = ((1024, 1024, 40), (4096, 3136, 80), (1000, 77, 40))

Row = dict[str, Any]


def measure(
    full: ConfigDict | None = None,
    small: ConfigDict | None = None,
    profile: str = "",
    attentions: Sequence[tuple[int, int, int]] = ATTENTIONS,
) -> dict[str, Row]:
    """By check: what was found, the goal, and whether it is met. What fails or comes too late says why.

    full: config of forward and training speed, as it is and with attention "dense", M3DDM with _CLIPS a device by
    default; small: of the network whose numbers are compared with float32 on a CPU. profile: folder for a trace of
    training steps; empty: none.
    """
    full, small = full or _m3ddm(), small or m3ddm_small.get_config()
    dense = full.copy_and_resolve_references()
    dense.model.attention = "dense"
    checks: dict[str, Callable[[], Row]] = {
        **{
            f"attention {sizes}, error": functools.partial(_at_most, _ATTENTION_ERROR, attention_error, *sizes)
            for sizes in attentions
        },
        "weight gradient, error": lambda: _at_most(_GRADIENT_ERROR, gradient_error),
        "network, error": lambda: _at_most(_NETWORK_ERROR, network_error, small),
        "matrix product, TFLOP/s": lambda: {"found": product_rate() / speed.TERA},
        "forward, MFU": lambda: _mfu("forward", forward(full)),
        "training step, MFU": lambda: _mfu("train", training.measure_on_device(full, _STEPS, profile)),
        "forward with dense attention, MFU": lambda: _mfu(None, forward(dense)),
        "training step with dense attention, MFU": lambda: _mfu(None, training.measure_on_device(dense, _STEPS)),
    }
    start, rows = time.perf_counter(), {}
    for name, check in checks.items():
        began = time.perf_counter()
        rows[name] = _try(check) if began - start < SECONDS else {"found": f"not run: {SECONDS} s are over"}
        rows[name]["took, s"] = time.perf_counter() - began
    return rows


def _m3ddm() -> ConfigDict:
    config = m3ddm.get_config()
    config.mesh.fsdp = 1
    config.train.batch_size = _CLIPS * jax.device_count()
    return config


def _try(check: Callable[[], Row]) -> Row:
    try:
        return check()
    except (ValueError, NotImplementedError, RuntimeError) as error:  # JAX's own are RuntimeErrors
        return {"found": f"failed: {' '.join(str(error).split())[:200]}", "passed": "no"}


def _at_most(goal: float, check: Callable[..., float], *arguments: Any) -> Row:
    found = check(*arguments)
    return {"found": found, "goal": f"at most {goal}", "passed": "yes" if found <= goal else "no"}


def _mfu(goal: str | None, result: dict[str, Any]) -> Row:
    """A row of measured speed: the goal is of known chips alone."""
    row = {"found": result.get("MFU", "not known: no peak of this device"), "seconds": result["step seconds p50"]}
    stats = jax.devices()[0].memory_stats() or {}
    row |= {"peak GiB so far": stats["peak_bytes_in_use"] / GIB} if "peak_bytes_in_use" in stats else {}
    if goal and "MFU" in result:
        row |= {"goal": f"at least {_MFU[goal]}", "passed": "yes" if result["MFU"] >= _MFU[goal] else "no"}
    return row


def _on_cpu(function: Callable, *arguments: Any) -> Any:
    """function(*arguments) in float32 on a CPU."""
    cpu = jax.devices("cpu")[0]
    arguments = jax.tree.map(
        lambda x: np.asarray(x, np.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, arguments
    )
    return jax.jit(function)(*jax.device_put(arguments, cpu))


def _error(found: Any, expected: Any) -> float:
    """The largest difference of any array as a share of its largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    arrays = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in arrays)


def _draw(*shape: int, seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), jnp.bfloat16)


def attention_error(queries: int, keys: int, width: int) -> float:
    """Of this device's attention in bfloat16, results and gradients, from all heads at once in float32 on a CPU."""
    query, key, value = (_draw(1, n, 2, width, seed=k) for k, n in enumerate((queries, keys, keys)))
    gradient = _draw(*query.shape, seed=3)

    def both(form: str) -> Callable:
        def function(query, key, value, gradient):
            out, backward = jax.vjp(functools.partial(attention, form=form), query, key, value)
            return out, backward(gradient)

        return function

    found = jax.jit(both("auto"))(query, key, value, gradient)
    return _error(found, _on_cpu(both("dense"), query, key, value, gradient))


def gradient_error() -> float:
    """Of this device's weight gradient of a 3x3 convolution in bfloat16, from that in float32 on a CPU."""
    x, gradient = _draw(16, 32, 32, 64, seed=0), _draw(16, 32, 32, 64, seed=1)
    kernel = jnp.zeros((3, 3, 64, 64))

    def of_kernel(x, kernel, gradient):
        return jax.vjp(lambda kernel: convolve(x, kernel, 1, ((1, 1), (1, 1))), kernel)[1](gradient)

    return _error(jax.jit(of_kernel)(x, kernel, gradient), _on_cpu(of_kernel, x, kernel, gradient))


def network_error(config: ConfigDict) -> float:
    """Root of the mean square of this device's forward pass in bfloat16 less that in float32 on a CPU, as a share."""
    config = config.copy_and_resolve_references()
    outputs = []
    for dtype in ("bfloat16", "float32"):
        config.model.update(dtype=dtype, remat="none")
        model = build_model(config.model)
        branch, *shapes = flops.branch_of(config, model, registry.abstract_variables(model))
        numbers = random_arrays(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes))
        arguments = jax.tree.map(lambda x, shape: x.astype(shape.dtype), numbers, shapes)
        run = jax.jit(branch) if dtype == "bfloat16" else functools.partial(_on_cpu, branch)
        outputs.append(np.asarray(run(*arguments), np.float32))
    found, expected = outputs
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def product_rate() -> float:
    """Operations a second of a product of square matrices in bfloat16."""
    a, b = (_draw(_SIDE, _SIDE, seed=k) for k in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * _SIDE**3 / timing.time_together({"product": lambda: product(a, b)}, _REPEATS)["product"].median


def forward(config: ConfigDict) -> dict[str, Any]:
    """Seconds and MFU of a forward pass of the config's network on one window."""
    model = build_model(config.model)
    branch, *arguments = flops.branch_of(config, model, registry.abstract_variables(model))
    operations = count_flops(branch, *arguments).total
    run, arrays = jax.jit(branch), random_arrays(arguments)
    seconds = timing.time_together({"forward": lambda: run(*arrays)}, _REPEATS)["forward"].median
    return {"step seconds p50": seconds} | speed.speed(operations, 0.0, seconds, 1, jax.devices()[0].device_kind)
