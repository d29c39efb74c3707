"""Convolutions of feature maps, in the way that suits the platform.

Accelerators run XLA's own convolution. On a CPU most of a pretraining step is convolutions, and large ones are computed
in other ways: those with 3 x 3 kernels and stride 1 by `winograd`, which multiplies less; and the kernel's gradient of
the others as matrix products over patches,

    dk = patches(x)^T dy

of a few images at a time, where XLA's own takes up to twice as long. All of it is made of XLA's operations, so that a
compiled program can be kept for the next start.

Outputs of a few pixels are a matrix product over patches on every platform, because XLA's convolutions on a CPU fall
to a twentieth of their speed there (2 GFLOP/s at 2 x 2 pixels and 512 features, 50 as a product). So are 1 x 1 kernels
on a CPU.
"""

import contextlib
import contextvars
import functools
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax.models import winograd
from awcl_jax.runtime import sharding

_SMALL_MAP = 9  # pixels
_LARGE = 2e8  # number of operations above which a loop over parts of the batch pays off
_IMAGES = 4  # at least this many images are used at a time for a kernel's gradient
_CACHED = 2**21  # more images are used up to these bytes of the maps' gradient, which fit in a core's cache

_left_to_xla: contextvars.ContextVar[bool] = contextvars.ContextVar("left_to_xla", default=False)


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw c o"], *, stride: int = 1, padding: int = 0
) -> Float[Array, "b h2 w2 o"]:
    """Convolve (cross-correlate) with `padding` pixels of zeros on every side.

    Args:
      x: feature maps.
      kernel: of the maps' type.
      stride: in both directions.
      padding: as in torchvision; XLA's "SAME" would pad a strided convolution on the other side.

    Returns:
      Maps of (h + 2 padding - kh) // stride + 1 rows, and columns likewise, equal to `lax.conv_general_dilated` up to
      rounding.
    """
    rows, columns = _out_shape(x, kernel, stride, padding)
    # An export has an open number of frames, and is for other machines.
    on_cpu = jax.default_backend() == "cpu" and x.dtype == jnp.float32 and isinstance(x.shape[0], int)
    large = on_cpu and 2 * x.shape[0] * rows * columns * kernel.size >= _LARGE and not _left_to_xla.get()
    if large:
        # A custom gradient needs both to vary over devices alike; that of the kernel is then summed over them.
        x, kernel = sharding.varying_alike(x, kernel)
    if large and (*kernel.shape[:2], stride) == (3, 3, 1) and padding <= 2 and min(rows, columns) > 1:
        return winograd.convolve(x, kernel, padding)
    if rows * columns <= _SMALL_MAP:
        patches = jnp.concatenate(_taps(x, kernel, stride, padding), axis=-1)
    elif on_cpu and (*kernel.shape[:2], padding) == (1, 1, 0):
        patches = x[:, ::stride, ::stride]
    elif large:
        return _convolve(x, kernel, stride, padding)
    else:
        return _xla(x, kernel, stride, padding)
    features = kernel.shape[-1]
    y = patches.reshape(-1, patches.shape[-1]) @ kernel.reshape(-1, features)
    return y.reshape(-1, rows, columns, features)


@contextlib.contextmanager
def left_to_xla() -> Iterator[None]:
    """Trace this block with XLA's own convolutions on a CPU too, whose operations can be counted."""
    before = _left_to_xla.set(True)
    try:
        yield
    finally:
        _left_to_xla.reset(before)


def _xla(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    pad = (padding, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _out_shape(x: Array, kernel: Array, stride: int, padding: int) -> tuple[int, int]:
    rows, columns = ((x.shape[axis] + 2 * padding - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
    return rows, columns


def _taps(x: Array, kernel: Array, stride: int, padding: int) -> list[Array]:
    """Return what each number of a kernel [c, o] is multiplied with: maps [b, h2, w2, c], one for every offset."""
    rows, columns = _out_shape(x, kernel, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = itertools.product(*map(range, kernel.shape[:2]))
    return [x[:, i::stride, j::stride][:, :rows, :columns] for i, j in offsets]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Compute `_xla`, with a faster gradient of the kernel."""
    return _xla(x, kernel, stride, padding)


def _convolve_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(stride: int, padding: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (to_x,) = jax.linear_transpose(lambda x: _xla(x, kernel, stride, padding), x)(gradient)

    def add_part(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        x, gradient = part
        patches = jnp.concatenate(_taps(x, kernel, stride, padding), axis=-1)
        return total + patches.reshape(-1, total.shape[0]).T @ gradient.reshape(-1, total.shape[1]), None

    images = math.gcd(x.shape[0], max(_IMAGES, 2 ** int(math.log2(_CACHED / gradient[0].size / 4))))
    images = images // 2 if images == x.shape[0] and images % 2 == 0 else images
    parts = x.reshape(-1, images, *x.shape[1:]), gradient.reshape(-1, images, *gradient.shape[1:])
    to_kernel, _ = jax.lax.scan(add_part, 0 * kernel.reshape(-1, kernel.shape[-1]), parts)
    return to_x, to_kernel.reshape(kernel.shape)


_convolve.defvjp(_convolve_forward, _convolve_backward)
