"""Floating-point operations of a function, counted from its trace: nothing is computed, compiled or allocated."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Kernels that hide their products, by the beginning of the primitive's name: Pallas, cuDNN's attention, foreign calls.
_KERNELS = ("pallas_call", "dot_product_attention", "ffi_call")


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of convolutions and of matrix products; a multiply-add is two.

    padding: the part of `convolution` that meets padding, which most counts include and XLA's leaves out.
    """

    convolution: int = 0
    matmul: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        return self.convolution + self.matmul

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.convolution + other.convolution, self.matmul + other.matmul, self.padding + other.padding)

    def __rmul__(self, times: int) -> "Flops":
        return Flops(times * self.convolution, times * self.matmul, times * self.padding)


def count_flops(function: Callable, *args: Any, **kwargs: Any) -> Flops:
    """Operations of function(*args, **kwargs), whose arguments are arrays or jax.ShapeDtypeStruct, in trees.

    Matrix products and convolutions alone count, padding as if it were data, as is usual; the zeros between the inputs
    of a transposed convolution do not. Gradients and what rematerialisation repeats count where the function has them.
    A scan counts as many times as it runs, of a condition the costliest branch, of a function that depends on the
    platform the default one: the plain form of what a platform may well compute with recomputation or in a kernel.
    Raises ValueError for products whose number a trace does not show: in a while loop, or in a kernel.
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs))


def _count(jaxpr: ClosedJaxpr | Jaxpr) -> Flops:
    return sum((_COUNTERS.get(eqn.primitive.name, _of_others)(eqn) for eqn in jaxpr.eqns), Flops())


def _of_matmul(eqn: JaxprEqn) -> Flops:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return Flops(matmul=2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted))


def _of_convolution(eqn: JaxprEqn) -> Flops:
    lhs, kernel, out = (variable.aval.shape for variable in (*eqn.invars, *eqn.outvars))
    lhs_axes, kernel_axes, out_axes = eqn.params["dimension_numbers"]
    # A kernel holds the input channels of one group alone.
    every = inside = 2 * out[out_axes[0]] * out[out_axes[1]] * kernel[kernel_axes[1]]
    for axis, stride, (pad, _), spacing, dilation in zip(
        range(2, len(out)),
        *(eqn.params[name] for name in ("window_strides", "padding", "lhs_dilation", "rhs_dilation")),
        strict=True,
    ):
        # Where each tap of each output position falls: on an input, on a hole between two, or on padding.
        outputs, taps = np.arange(out[out_axes[axis]]), np.arange(kernel[kernel_axes[axis]])
        places = stride * outputs[:, None] + dilation * taps - pad
        no_hole = places % spacing == 0
        every *= int(no_hole.sum())
        inside *= int((no_hole & (places >= 0) & (places < spacing * lhs[lhs_axes[axis]])).sum())
    return Flops(convolution=every, padding=every - inside)


def _of_scan(eqn: JaxprEqn) -> Flops:
    return eqn.params["length"] * _count(eqn.params["jaxpr"])


def _of_while(eqn: JaxprEqn) -> Flops:
    if _of_others(eqn).total:
        raise ValueError("a while loop of unknown length holds products: loops of fixed length (scan) are accepted")
    return Flops()


def _of_cond(eqn: JaxprEqn) -> Flops:
    branches, platforms = eqn.params["branches"], eqn.params.get("branches_platforms") or ()
    if None in platforms:
        return _count(branches[platforms.index(None)])
    return max(map(_count, branches), key=lambda flops: flops.total)


def _of_shard_map(eqn: JaxprEqn) -> Flops:
    shards = math.prod(eqn.params["mesh"].shape[axis] for axis in eqn.params["newly_manual_axes"])
    return shards * _of_others(eqn)


def _of_others(eqn: JaxprEqn) -> Flops:
    """What a call (jit, checkpoint, custom derivatives) holds; nothing for the rest."""
    if eqn.primitive.name.startswith(_KERNELS):
        raise ValueError(f"the kernel {eqn.primitive.name} hides its products: only plain JAX is accepted")
    values = jax.tree.leaves(eqn.params)
    return sum((_count(value) for value in values if isinstance(value, ClosedJaxpr | Jaxpr)), Flops())


_COUNTERS = {
    "dot_general": _of_matmul,
    "conv_general_dilated": _of_convolution,
    "scan": _of_scan,
    "while": _of_while,
    "cond": _of_cond,
    "shard_map": _of_shard_map,
}
