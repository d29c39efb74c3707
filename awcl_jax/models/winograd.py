"""Winograd's convolution with 3 x 3 kernels, and its gradients, made of XLA's matrix products.

    Y  = A^T [sum over features (G k G^T) * (B^T d B)] A       (Lavin & Gray 2016, eq. 8)
    dk = G^T [sum over tiles (B^T d B) * (A dY A^T)] G         its transpose

A tile d of 4 x 4 pixels, two pixels from the next one, gives Y, 2 x 2 pixels, with 16 multiplications instead of 36.
Each of the 16 is a matrix product of all tiles with all features. The matrices only add and halve, so the result is as
exact as the sum that it replaces, up to twice its rounding.

The transformed tiles take four times the memory of the maps. So a few images are transformed at a time: enough tiles
for a matrix product to be fast, few enough for a core's cache.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax.runtime import sharding

_TILES = 800  # transformed at a time, at most, unless one image has more

Matrix = tuple[tuple[float, ...], ...]
Grid = list[list[Array]]

_INPUT: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # B^T
_KERNEL: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_OUTPUT: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T


def _transposed(matrix: Matrix) -> Matrix:
    return tuple(zip(*matrix, strict=True))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c o"], padding: int) -> Float[Array, "b h2 w2 o"]:
    """Convolve with stride 1 and `padding` pixels of zeros on every side, at most two.

    In a mapped step both arrays must vary over devices alike.
    """
    weights = _transformed(kernel)
    y = jax.lax.map(lambda part: _convolve_part(part, weights, padding), _in_parts(x, _images_at_once(x, padding)))
    return y.reshape(-1, *y.shape[2:])


def _forward(x: Array, kernel: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel, padding), (x, kernel)


def _backward(padding: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    """Return the gradients of the maps and of the kernel, in one loop.

    In a loop for each, XLA may run all of those for the maps first, and keep every layer's maps and gradient for the
    kernels' until the end of the step.
    """
    x, kernel = kept
    weights = _turned(_transformed(kernel))

    def add_part(total: Grid, part: tuple[Array, Array]) -> tuple[Grid, Array]:
        x, gradient = part
        grids = total, _input_tiles(x, padding), _output_tiles(gradient)
        total = [
            [so_far + tile.T @ of_tile for so_far, tile, of_tile in zip(*rows, strict=True)]
            for rows in zip(*grids, strict=True)
        ]
        return total, _convolve_part(gradient, weights, 2 - padding, back=True)

    zeros, x, gradient = sharding.varying_alike(jnp.zeros((x.shape[-1], gradient.shape[-1]), x.dtype), x, gradient)
    images = _images_at_once(x, padding)
    parts = _in_parts(x, images), _in_parts(gradient, images)
    total, to_x = jax.lax.scan(add_part, [[zeros] * 4] * 4, parts)
    return to_x.reshape(x.shape), jnp.stack([jnp.stack(row) for row in _both(_transposed(_KERNEL), total)])


convolve.defvjp(_forward, _backward)


def _convolve_part(part: Array, weights: Grid, padding: int, *, back: bool = False) -> Array:
    """Convolve a few images with a transformed kernel [c, o], or `back` from o features to c."""
    rows, columns = _out_edges(part, padding)
    products = [
        [jnp.tensordot(tile, weight, axes=(1, int(back))) for tile, weight in zip(*pair, strict=True)]
        for pair in zip(_input_tiles(part, padding), weights, strict=True)
    ]
    return _joined(_both(_OUTPUT, products), images=part.shape[0], rows=rows, columns=columns)


def _transformed(kernel: Array) -> Grid:
    """Return the 4 x 4 matrices [c, o] of G k G^T."""
    return _both(_KERNEL, [list(row) for row in kernel])


def _turned(weights: Grid) -> Grid:
    """Return the transform of a kernel that is turned by half from that of the kernel.

    Turned, it has the rows and columns of G k G^T in the order 3, 1, 2, 0. So a gradient needs no copy of the kernel in
    another order, which takes longer than the products where maps are small and features many.
    """
    order = (3, 1, 2, 0)
    return [[weights[row][column] for column in order] for row in order]


def _in_parts(x: Array, images: int) -> Array:
    return x.reshape(-1, images, *x.shape[1:])


def _images_at_once(x: Array, padding: int) -> int:
    tiles = math.prod(-(-edge // 2) for edge in _out_edges(x, padding))
    images = math.gcd(x.shape[0], 2 ** int(math.log2(max(_TILES / tiles, 1))))
    # At least two passes: without a loop XLA would compute what comes before once for each of the sixteen products.
    return images // 2 if images == x.shape[0] and images % 2 == 0 else images


def _out_edges(x: Array, padding: int) -> tuple[int, int]:
    return x.shape[1] + 2 * padding - 2, x.shape[2] + 2 * padding - 2


def _input_tiles(x: Array, padding: int) -> list[list[Float[Array, "tiles c"]]]:
    """Return the 4 x 4 numbers of every tile after B^T d B."""
    rows, columns = (-(-edge // 2) for edge in _out_edges(x, padding))
    after = [2 * tiles + 2 - padding - edge for tiles, edge in ((rows, x.shape[1]), (columns, x.shape[2]))]
    x = jnp.pad(x, ((0, 0), (padding, after[0]), (padding, after[1]), (0, 0)))
    pixels = [[x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for j in range(4)] for i in range(4)]
    return _as_rows(_both(_INPUT, pixels))


def _output_tiles(gradient: Array) -> list[list[Float[Array, "tiles o"]]]:
    """Return the 4 x 4 numbers of every tile after A dY A^T."""
    _, rows, columns, _ = gradient.shape
    gradient = jnp.pad(gradient, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
    return _as_rows(_both(_transposed(_OUTPUT), [[gradient[:, i::2, j::2] for j in range(2)] for i in range(2)]))


def _as_rows(grid: Grid) -> Grid:
    return [[part.reshape(-1, part.shape[-1]) for part in row] for row in grid]


def _joined(grid: Grid, *, images: int, rows: int, columns: int) -> Float[Array, "b h w o"]:
    """Return maps of so many rows and columns from the 2 x 2 pixels of each tile."""
    tiles = -(-rows // 2), -(-columns // 2)
    pixels = [[part.reshape(images, *tiles, -1) for part in row] for row in grid]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in pixels], axis=2)
    return whole.reshape(images, 2 * tiles[0], 2 * tiles[1], -1)[:, :rows, :columns]


def _both(matrix: Matrix, grid: Sequence[Sequence[Array]]) -> Grid:
    """Return `matrix` @ grid @ `matrix`^T of a grid of arrays."""
    turned = zip(*(_combined(matrix, column) for column in zip(*grid, strict=True)), strict=True)
    return [_combined(matrix, row) for row in turned]


def _combined(matrix: Matrix, arrays: Sequence[Array]) -> list[Array]:
    """Return, for each row of a matrix, the sum of the arrays multiplied by its numbers."""
    scaled: dict[float, Callable[[Array], Array]] = {1: lambda a: a, -1: lambda a: -a}
    sums = []
    for row in matrix:
        terms = [
            scaled.get(number, lambda a, by=number: by * a)(a) for number, a in zip(row, arrays, strict=True) if number
        ]
        sums.append(functools.reduce(lambda one, other: one + other, terms))
    return sums
