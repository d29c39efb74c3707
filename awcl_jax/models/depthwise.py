"""Depthwise convolutions, in the way that suits the platform.

    y[i, j]  = sum over u, v of x[i + u, j + v] * k[u, v]        for each feature
    dk[u, v] = sum over i, j of x[i + u, j + v] * dy[i, j]       over all pictures

Accelerators run XLA's own convolution in groups of one feature. On a CPU that one runs at 1 GFLOP/s, and its kernel's
gradient at a quarter of it. Sums of shifted maps, which XLA fuses into one loop over the features, run at 20 GFLOP/s:
the first with a term for each number of the kernel; the second, a convolution of the maps by their gradient, with a
term for each pixel of a few rows, one pass after the other.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax.runtime import sharding

_TERMS = 32  # of a pass of the kernel's gradient: with 64 it takes up to twice as long


def convolve_depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"]) -> Float[Array, "b h w c"]:
    """Convolve (cross-correlate) each feature by itself, padded with zeros so that the maps keep their size.

    Args:
      x: feature maps.
      kernel: of the maps' type; k is odd.

    Returns:
      Maps equal to `lax.conv_general_dilated` in groups of one feature, up to rounding.
    """
    if x.dtype != jnp.float32:
        return _xla(x, kernel)
    if not isinstance(x.shape[0], int):  # an export, which has an open number of frames, and is for other machines
        return jax.lax.platform_dependent(x, kernel, cpu=lambda x, k: _convolve(x, k[:, :, 0]), default=_xla)
    if jax.default_backend() != "cpu":
        return _xla(x, kernel)
    # A custom gradient needs both to vary over devices alike; that of the kernel is then summed over them.
    x, kernel = sharding.varying_alike(x, kernel)
    return _convolve(x, kernel[:, :, 0])


def _xla(x: Array, kernel: Array) -> Array:
    pad = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


@jax.custom_vjp
def _convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "k k c"]) -> Float[Array, "b h w c"]:
    edge, (rows, columns) = len(kernel), x.shape[1:3]
    padded = _padded(x, edge)
    return _sum(
        padded[:, u : u + rows, v : v + columns] * kernel[u, v].reshape(1, 1, 1, -1)
        for u in range(edge)
        for v in range(edge)
    )


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return _convolve(gradient, jnp.flip(kernel, (0, 1))), _kernel_gradient(x, gradient, len(kernel))


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(x: Array, gradient: Array, edge: int) -> Float[Array, "k k c"]:
    b, rows, columns, c = gradient.shape
    # A tile of the gradient for each pass, and zeros beyond the last.
    wide = min(columns, _TERMS)
    high = min(rows, max(1, _TERMS // wide))
    down, across = -(-rows // high), -(-columns // wide)
    beyond = down * high - rows, across * wide - columns
    padded = _padded(x, edge, beyond)
    gradient = jnp.pad(gradient, ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0)))

    def add_tile(total: Array, tile: Array) -> tuple[Array, None]:
        i, j = tile // across * high, tile % across * wide
        window = jax.lax.dynamic_slice(padded, (0, i, j, 0), (b, high + edge - 1, wide + edge - 1, c))
        part = jax.lax.dynamic_slice(gradient, (0, i, j, 0), (b, high, wide, c))
        terms = (
            window[:, i : i + edge, j : j + edge] * part[:, i : i + 1, j : j + 1]
            for i in range(high)
            for j in range(wide)
        )
        return total + _sum(terms), None

    zeros, padded, gradient = sharding.varying_alike(jnp.zeros((b, edge, edge, c), x.dtype), padded, gradient)
    total, _ = jax.lax.scan(add_tile, zeros, jnp.arange(down * across))
    return total.sum(axis=0)


def _padded(x: Array, edge: int, beyond: tuple[int, int] = (0, 0)) -> Array:
    pad = edge // 2
    # Otherwise XLA would pad again for each term.
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), (pad, pad + beyond[0]), (pad, pad + beyond[1]), (0, 0))))


def _sum(terms: Iterable[Array]) -> Array:
    return functools.reduce(lambda one, other: one + other, terms)
