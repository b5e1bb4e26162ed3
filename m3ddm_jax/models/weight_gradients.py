"""Products of an activation with a weight, whose gradient is summed in float32 whatever the compute dtype is.

A weight's gradient is a sum over clips, and clips lie on many devices: differentiated as usual, a product in bfloat16
leaves it to the devices to exchange, and add, partial sums of bfloat16.

cuDNN's convolutions have results of the dtype of their arguments alone: on GPUs a device rounds its own sum to that of
a convolution in bfloat16, and the sums of all devices are added in float32.

On several devices clips stay where they are, and weights come to them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from m3ddm_jax.parallel.constrain import split_clips, summed_over_clips

Padding = tuple[tuple[int, int], tuple[int, int]]


def matmul(x: jax.Array, kernel: jax.Array, summed: jnp.dtype | None = None) -> jax.Array:
    """x [clips, ..., C] times a kernel [C, ...] of float32, in the dtype of x; summed: that of the result, where
    another."""
    return split_clips(_matmul(split_clips(x), kernel, summed))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: jax.Array, kernel: jax.Array, summed: jnp.dtype | None) -> jax.Array:
    return jnp.tensordot(x, kernel.astype(x.dtype), axes=1, preferred_element_type=summed)


def _matmul_backward(
    summed: jnp.dtype | None, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    inner, gradient = x.ndim - 1, gradient.astype(x.dtype)
    outputs = tuple(range(inner, gradient.ndim)), tuple(range(1, kernel.ndim))
    of_x = jnp.tensordot(gradient, kernel.astype(gradient.dtype), outputs)
    of_kernel = jnp.tensordot(x, gradient, (tuple(range(inner)),) * 2, preferred_element_type=jnp.float32)
    return of_x, of_kernel


_matmul.defvjp(lambda x, kernel, summed: (_matmul(x, kernel, summed), (x, kernel)), _matmul_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., *shape] plus a bias [*shape] of float32, in the dtype of x."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    leading = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.sum(leading, dtype=jnp.float32)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


class _Window(NamedTuple):
    """How a kernel goes over a picture; `convolve` says what the fields are."""

    stride: int
    padding: Padding
    dilation: int
    groups: int


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, dilation: int = 1, groups: int = 1
) -> jax.Array:
    """x [N, H, W, C] convolved with a kernel [h, w, C / groups, O] of float32 in the dtype of x: [N, H', W', O].

    padding: of rows and of columns, before and behind. dilation: from one tap to the next. groups: of channels, each
    convolved by itself.
    """
    return split_clips(_convolve(split_clips(x), kernel, _Window(stride, padding, dilation, groups)))


def _plain(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (window.stride, window.stride),
        window.padding,
        rhs_dilation=(window.dilation, window.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=window.groups,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    return _plain(x, kernel, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _of_x(gradient: jax.Array, kernel: jax.Array, size: tuple[int, int], window: _Window) -> jax.Array:
    """The gradient at x [N, *size, C] of that at a convolution."""
    x = jax.ShapeDtypeStruct((len(gradient), *size, kernel.shape[2] * window.groups), gradient.dtype)
    return jax.linear_transpose(lambda x: _plain(x, kernel, window), x)(gradient)[0]


def _of_kernel(x: jax.Array, gradient: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """The gradient at a kernel, which gives its shape alone, of that at a convolution of x."""
    if not x.size:
        return jnp.zeros_like(kernel)
    exact = functools.partial(_seen_by_taps, taps=kernel.shape[:2], window=window, summed=jnp.float32)
    if x.dtype == jnp.float32:
        return exact(x, gradient)
    # In float32, XLA copies both arguments to float32 first: four times the memory at half the rate.
    rounded = summed_over_clips(lambda x, gradient: exact(x, gradient, summed=x.dtype).astype(jnp.float32), x)
    if rounded is None:
        return exact(x, gradient)
    return jax.lax.platform_dependent(x, gradient, cuda=rounded, default=exact)


def _seen_by_taps(
    x: jax.Array, gradient: jax.Array, *, taps: tuple[int, int], window: _Window, summed: jnp.dtype
) -> jax.Array:
    """`_of_kernel` for a kernel of the given rows, columns and dtype."""
    # Each tap is the product of the gradient with what that tap has seen: x convolved with the gradient, over clips.
    seen = [
        (before, window.dilation * (count - 1) + 1 - size - before + window.stride * (outputs - 1))
        for (before, _), count, size, outputs in zip(
            window.padding, taps, x.shape[1:3], gradient.shape[1:3], strict=True
        )
    ]
    return jax.lax.conv_general_dilated(
        x,
        gradient,
        (window.dilation, window.dilation),
        seen,
        rhs_dilation=(window.stride, window.stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        batch_group_count=window.groups,
        preferred_element_type=summed,
    )


def _convolve_backward(
    window: _Window, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _of_x(gradient, kernel, x.shape[1:3], window), _of_kernel(x, gradient, kernel, window)


def _of_x_backward(
    size: tuple[int, int], window: _Window, saved: tuple[jax.Array, jax.Array], at_x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # For penalties on gradients: what is linear in x and in the kernel leads back to the same two.
    del size
    gradient, kernel = saved
    return _convolve(at_x, kernel, window), _of_kernel(at_x, gradient, kernel, window)


_convolve.defvjp(lambda x, kernel, window: (_convolve(x, kernel, window), (x, kernel)), _convolve_backward)
_of_x.defvjp(lambda gradient, kernel, *how: (_of_x(gradient, kernel, *how), (gradient, kernel)), _of_x_backward)
