"""Convolutions of feature maps, in the way that suits the platform.

Accelerators run XLA's own convolution. On a CPU most of a pretraining step goes into convolutions, and there XLA leaves
half of the machine unused; so large ones are left to oneDNN, which XLA brings along:

    y  = x * k                      forward
    dx = dy * flip(k)^T             for stride 1, a convolution too
    dk = x^T * dy                   where features stand for images, images for features, and the stride spreads dy

oneDNN has no entry in JAX, only the one by which XLA's own compiler would call it, so `_is_there` tries that once, on
a small convolution, and without it everything stays XLA's. What XLA compiles with it is not kept for the next start,
which pays only where a step takes longer than the compiler: small convolutions stay XLA's, too.

Outputs of a few pixels are a matrix product over patches everywhere, since XLA's convolutions on a CPU fall to a
twentieth of their speed there (2 GFLOP/s at 2 x 2 pixels and 512 features, of 50 as a product). So are 1 x 1 kernels on
a CPU.
"""

import contextlib
import contextvars
import functools
import itertools
import json
import math
import platform
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax import sharding

_SMALL_MAP = 9  # pixels
_LARGE = 2e8  # operations, from which on oneDNN pays
_IMAGES = 16  # whose share of a kernel's gradient is computed at a time

Pads = tuple[int, int]
_left_out: contextvars.ContextVar[bool] = contextvars.ContextVar("left_out", default=False)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], *, stride: int = 1, padding: int = 0
) -> Float[Array, "b h2 w2 o"]:
    """Convolution (cross-correlation) with `padding` pixels of zeros on every side.

    Args:
      x: feature maps.
      kernel: of the maps' type.
      stride: both ways.
      padding: as torchvision pads; XLA's "SAME" would pad a strided convolution on the other side.

    Returns:
      Maps of (h + 2 padding - kh) // stride + 1 rows, and columns likewise, equal to `lax.conv_general_dilated` up to
      rounding.
    """
    rows, columns = _out_shape(x, kernel, stride, padding)
    if rows * columns <= _SMALL_MAP:
        patches = jnp.concatenate(_taps(x, kernel, stride, padding), axis=-1)
        return patches @ kernel.reshape(-1, kernel.shape[-1])
    # An export leaves the number of frames open, and is for other machines.
    if jax.default_backend() != "cpu" or x.dtype != jnp.float32 or not isinstance(x.shape[0], int):
        return _xla(x, kernel, stride, padding)
    if (*kernel.shape[:2], padding) == (1, 1, 0):
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if 2 * x.shape[0] * rows * columns * kernel.size < _LARGE or _left_out.get() or not _is_there():
        return _xla(x, kernel, stride, padding)
    # A custom gradient wants both to vary over devices alike; that of the kernel is then summed over them.
    return _large(*sharding.varying_alike(x, kernel), stride, padding)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """What is traced within this block has XLA's own convolutions on a CPU, too, whose operations can be counted."""
    before = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(before)


def _xla(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    pad = (padding, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _out_shape(x: Array, kernel: Array, stride: int, padding: int) -> tuple[int, int]:
    rows, columns = ((x.shape[axis] + 2 * padding - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
    return rows, columns


def _taps(x: Array, kernel: Array, stride: int, padding: int) -> list[Array]:
    """What each number of a kernel [c, o] meets: maps [b, h2, w2, c], one for every offset."""
    rows, columns = _out_shape(x, kernel, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = itertools.product(*map(range, kernel.shape[:2]))
    return [x[:, i::stride, j::stride][:, :rows, :columns] for i, j in offsets]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return _onednn(x, kernel, strides=stride, pads=((padding, padding),) * 2)


def _large_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _large(x, kernel, stride, padding), (x, kernel)


def _large_backward(stride: int, padding: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    edge = kernel.shape[0]
    if stride == 1:
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        to_x = _onednn(gradient, turned, pads=((edge - 1 - padding,) * 2,) * 2)
    else:
        (to_x,) = jax.linear_transpose(lambda x: _xla(x, kernel, stride, padding), x)(gradient)
    if x.shape[-1] == 1:
        taps = jnp.stack([tap[..., 0] for tap in _taps(x, kernel, stride, padding)])
        return to_x, jnp.einsum("kbhw,bhwo->ko", taps, gradient).reshape(kernel.shape)
    # The last pixels that a stride leaves over meet nothing.
    after = [padding - (x.shape[axis] + 2 * padding - edge) % stride for axis in (1, 2)]

    def add_part(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        x, gradient = part
        return total + _onednn(
            x.transpose(3, 1, 2, 0),
            gradient.transpose(1, 2, 0, 3),
            pads=((padding, after[0]), (padding, after[1])),
            spread=stride,
        ), None

    # In a loop nothing is fused with these transpositions, which then would take ten times as long.
    images = math.gcd(x.shape[0], _IMAGES)
    parts = x.reshape(-1, images, *x.shape[1:]), gradient.reshape(-1, images, *gradient.shape[1:])
    to_kernel, _ = jax.lax.scan(add_part, 0 * kernel.transpose(2, 0, 1, 3), parts)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_large.defvjp(_large_forward, _large_backward)


def _onednn(x: Array, kernel: Array, *, pads: tuple[Pads, Pads], strides: int = 1, spread: int = 1) -> Array:
    """Convolution by oneDNN, [b, h, w, c] * [kh, kw, c, o], with `spread` - 1 zeros between a kernel's numbers."""
    rows, columns = (
        (x.shape[axis] + sum(pads[axis - 1]) - (kernel.shape[axis - 1] - 1) * spread - 1) // strides + 1
        for axis in (1, 2)
    )
    maps = {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}
    config = {
        "dims": "4",
        "feature_groups": "1",
        "input": {"data": maps},
        "output": {"data": maps},
        "kernel": {
            "filter": {"input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"]},
        },
        "window": {
            "pad_left": [str(before) for before, _ in pads],
            "pad_right": [str(after) for _, after in pads],
            "strides": [str(strides)] * 2,
            "window_dilations": [str(spread)] * 2,
        },
    }
    # Of the maps' type, so that it varies over devices where they do.
    out = jax.typeof(x).update(shape=(x.shape[0], rows, columns, kernel.shape[3]))
    call = jax.ffi.ffi_call(
        "__onednn$convolution",
        out,
        custom_call_api_version=1,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )
    return call(x, kernel)


@functools.cache
def _is_there() -> bool:
    """Whether this release of XLA convolves by oneDNN, and rightly."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    with jax.ensure_compile_time_eval():
        x, kernel = jnp.arange(32.0).reshape(1, 4, 4, 2), jnp.arange(36.0).reshape(3, 3, 2, 2)
        try:
            found = jax.jit(functools.partial(_onednn, pads=((1, 1), (1, 1))))(x, kernel)
        except jax.errors.JaxRuntimeError:
            return False
        return bool(jnp.allclose(found, _xla(x, kernel, 1, 1)))
