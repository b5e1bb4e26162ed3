"""Products of an activation with a weight, whose gradient is summed in float32 whatever the compute dtype is.

A weight's gradient is a sum over clips, and clips lie on many devices: differentiated as usual, a product in bfloat16
leaves it to the devices to exchange, and add, partial sums of bfloat16.
"""

import functools

import jax
import jax.numpy as jnp

_NHWC = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], tuple[int, int]]


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., C] times a kernel [C, ...] of float32, in the dtype of x."""
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=1)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    inner = x.ndim - 1
    outputs = tuple(range(inner, gradient.ndim)), tuple(range(1, kernel.ndim))
    of_x = jnp.tensordot(gradient, kernel.astype(gradient.dtype), outputs)
    of_kernel = jnp.tensordot(x, gradient, (tuple(range(inner)),) * 2, preferred_element_type=jnp.float32)
    return of_x, of_kernel


matmul.defvjp(lambda x, kernel: (matmul(x, kernel), (x, kernel)), _matmul_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., *shape] plus a bias [*shape] of float32, in the dtype of x."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    leading = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.sum(leading, dtype=jnp.float32)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel.astype(x.dtype), strides, padding, dimension_numbers=_NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """x [N, H, W, C] convolved with a kernel [h, w, C, O] of float32 in the dtype of x: [N, H', W', O].

    padding: of rows and of columns, before and behind.
    """
    return _convolve(x, kernel, stride, padding)


def _convolve_backward(
    stride: int, padding: Padding, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (of_x,) = jax.linear_transpose(lambda x: _convolve(x, kernel, stride, padding), x)(gradient)
    # Each tap is the product of the gradient with what that tap has seen: x convolved with the gradient, over clips.
    seen = [
        (before, taps - size - before + stride * (outputs - 1))
        for (before, _), taps, size, outputs in zip(
            padding, kernel.shape[:2], x.shape[1:3], gradient.shape[1:3], strict=True
        )
    ]
    of_kernel = jax.lax.conv_general_dilated(
        x,
        gradient,
        (1, 1),
        seen,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=jnp.float32,
    )
    return of_x, of_kernel


convolve.defvjp(
    lambda x, kernel, stride, padding: (convolve(x, kernel, stride, padding), (x, kernel)), _convolve_backward
)
