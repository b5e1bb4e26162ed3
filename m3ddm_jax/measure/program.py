"""A function compiled: how long that takes, what memory XLA plans for it, and random numbers to call it with."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
    """A function compiled for arguments of given shapes; call takes such arguments.

    The bytes are XLA's plan: of arguments, of the result, and of what lives between, each at its peak.
    """

    call: Callable[..., Any]
    compile_seconds: float
    argument_bytes: int
    output_bytes: int
    temp_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.output_bytes + self.temp_bytes


def compile_program(function: Callable, *arguments: Any) -> Program:
    """function compiled for arguments, arrays or jax.ShapeDtypeStruct in trees; nothing is computed or allocated."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    return Program(compiled, seconds, plan.argument_size_in_bytes, plan.output_size_in_bytes, plan.temp_size_in_bytes)


def random_arrays(shapes: Any) -> Any:
    """Arrays of a tree's shapes and dtypes, as weights and their running statistics might be.

    Kernels are normal and keep the size of what passes them, vectors uniform in 0..1, whole numbers 0. They come from
    numpy, which spares the compilation of an initialisation.
    """
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        if len(leaf.shape) < 2:
            return jnp.asarray(rng.random(leaf.shape, np.float32), leaf.dtype)
        scale = np.float32(math.prod(leaf.shape[:-1]) ** -0.5)
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree.map(fill, shapes)
