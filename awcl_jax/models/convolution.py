"""Convolutions of feature maps, in the way that suits the platform.

Accelerators run XLA's own convolution. On a CPU most of a pretraining step is convolutions, and XLA leaves half of the
machine unused; so oneDNN, which comes with XLA, computes large ones:

    y  = x * k                      forward
    dx = dy * flip(k)^T             for stride 1, a convolution too
    dk = x^T * dy                   with features and images swapped, and dy spread by the stride

JAX has no interface to oneDNN, only the one for XLA's own compiler. So `_is_available` tries that once, on a small
convolution; if it fails, XLA computes everything. Programs with oneDNN are not cached for the next start, which pays
off only if a step takes longer than compiling: XLA computes small convolutions, too.

Outputs of a few pixels are a matrix product over patches on every platform, because XLA's convolutions on a CPU fall
to a twentieth of their speed there (2 GFLOP/s at 2 x 2 pixels and 512 features, 50 as a product). So are 1 x 1 kernels
on a CPU.
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

from awcl_jax.runtime import sharding

_SMALL_MAP = 9  # pixels
_LARGE = 2e8  # number of operations above which oneDNN is faster
_IMAGES = 4  # at least this many images are used at a time for a kernel's gradient
_CACHED = 2**21  # more images are used up to these bytes of the maps' gradient, which fit in a core's cache

Pads = tuple[int, int]
_left_out: contextvars.ContextVar[bool] = contextvars.ContextVar("left_out", default=False)


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
    by_onednn = (
        on_cpu and 2 * x.shape[0] * rows * columns * kernel.size >= _LARGE and not _left_out.get() and _is_available()
    )
    if by_onednn:
        # A custom gradient needs both to vary over devices alike; that of the kernel is then summed over them.
        x, kernel = sharding.varying_alike(x, kernel)
    multiply = _multiply if by_onednn else jnp.matmul
    if rows * columns <= _SMALL_MAP:
        patches = jnp.concatenate(_taps(x, kernel, stride, padding), axis=-1)
    elif on_cpu and (*kernel.shape[:2], padding) == (1, 1, 0):
        patches = x[:, ::stride, ::stride]
    elif by_onednn:
        return _convolve(x, kernel, stride, padding)
    else:
        return _xla(x, kernel, stride, padding)
    features = kernel.shape[-1]
    y = multiply(patches.reshape(-1, patches.shape[-1]), kernel.reshape(-1, features))
    return y.reshape(-1, rows, columns, features)


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """Trace this block with XLA's own convolutions on a CPU too, whose operations can be counted."""
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
    """Return what each number of a kernel [c, o] is multiplied with: maps [b, h2, w2, c], one for every offset."""
    rows, columns = _out_shape(x, kernel, stride, padding)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = itertools.product(*map(range, kernel.shape[:2]))
    return [x[:, i::stride, j::stride][:, :rows, :columns] for i, j in offsets]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Compute `_xla` with oneDNN."""
    return _convolution(x, kernel, strides=stride, pads=((padding, padding),) * 2)


def _convolve_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(stride: int, padding: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    edge = kernel.shape[0]
    if stride == 1:
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        to_x = _convolution(gradient, turned, pads=((edge - 1 - padding,) * 2,) * 2)
    else:
        (to_x,) = jax.linear_transpose(lambda x: _xla(x, kernel, stride, padding), x)(gradient)
    # The last pixels that a stride leaves over are not used.
    after = [padding - (x.shape[axis] + 2 * padding - edge) % stride for axis in (1, 2)]

    def add_part(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        x, gradient = part
        return total + _convolution(
            x.transpose(3, 1, 2, 0),
            gradient.transpose(1, 2, 0, 3),
            pads=((padding, after[0]), (padding, after[1])),
            spread=stride,
        ), None

    # A loop of several passes, so that nothing is fused with these transpositions: they would take ten times as long.
    images = math.gcd(x.shape[0], max(_IMAGES, 2 ** int(math.log2(_CACHED / gradient[0].size / 4))))
    images = images // 2 if images == x.shape[0] and images % 2 == 0 else images
    parts = x.reshape(-1, images, *x.shape[1:]), gradient.reshape(-1, images, *gradient.shape[1:])
    to_kernel, _ = jax.lax.scan(add_part, 0 * kernel.transpose(2, 0, 1, 3), parts)
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_convolve.defvjp(_convolve_forward, _convolve_backward)


@jax.custom_vjp
def _multiply(x: Array, y: Array) -> Array:
    """Multiply matrices with oneDNN, in the gradients too, which read a matrix transposed in place."""
    return _product(x, y)


def _multiply_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x, y), (x, y)


def _multiply_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, y = kept
    return _product(gradient, y, transpose_y=True), _product(x, gradient, transpose_x=True)


_multiply.defvjp(_multiply_forward, _multiply_backward)


def _product(x: Array, y: Array, *, transpose_x: bool = False, transpose_y: bool = False) -> Array:
    """Multiply matrices with oneDNN, after transposing them as asked."""
    shape = x.shape[1 if transpose_x else 0], y.shape[0 if transpose_y else 1]
    config = {"transpose_a": transpose_x, "transpose_b": transpose_y}
    return _onednn("matmul", {"onednn_matmul_config": config}, shape, x, y)


def _convolution(x: Array, kernel: Array, *, pads: tuple[Pads, Pads], strides: int = 1, spread: int = 1) -> Array:
    """Convolve with oneDNN, [b, h, w, c] * [kh, kw, c, o], with `spread` - 1 zeros between a kernel's numbers."""
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
    return _onednn(
        "convolution", {"onednn_conv_config": config}, (x.shape[0], rows, columns, kernel.shape[3]), x, kernel
    )


def _onednn(name: str, config: dict[str, object], shape: tuple[int, ...], x: Array, y: Array) -> Array:
    """Call a oneDNN function on two arrays. The result has the type of the first, so it varies over devices alike."""
    call = jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.typeof(x).update(shape=shape),
        custom_call_api_version=1,
        legacy_backend_config=json.dumps(config),
    )
    return call(x, y)


@functools.cache
def _is_available() -> bool:
    """Return whether this release of XLA convolves and multiplies with oneDNN, and correctly."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    with jax.ensure_compile_time_eval():
        # oneDNN ends the process on float64, which these would be under jax_enable_x64.
        x = jnp.arange(32, dtype=jnp.float32).reshape(1, 4, 4, 2)
        kernel = jnp.arange(36, dtype=jnp.float32).reshape(3, 3, 2, 2)
        try:
            maps = jax.jit(functools.partial(_convolution, pads=((1, 1), (1, 1))))(x, kernel)
            product = jax.jit(functools.partial(_product, transpose_x=True))(kernel[0, 0], kernel[1, 1])
        except jax.errors.JaxRuntimeError:
            return False
        return bool(jnp.allclose(maps, _xla(x, kernel, 1, 1)) and jnp.allclose(product, kernel[0, 0].T @ kernel[1, 1]))
