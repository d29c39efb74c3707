"""Depthwise convolutions and their gradients against sums over shifted maps in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models import depthwise
from awcl_jax.models.depthwise import convolve_depthwise


def weights_like(y):
    return np.cos(np.arange(y.size)).reshape(y.shape)


def in_float64(x, kernel):
    """The maps, and the gradients of a sum with fixed weights to maps and kernel."""
    pad = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    _, rows, columns, _ = x.shape
    places = {(i, j): np.s_[:, i : i + rows, j : j + columns] for i, j in np.ndindex(*kernel.shape[:2])}
    y = sum(padded[place] * kernel[*at, 0] for at, place in places.items())
    gradient = weights_like(y)
    to_padded, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for at, place in places.items():
        to_padded[place] += gradient * kernel[*at, 0]
        to_kernel[*at, 0] = (padded[place] * gradient).sum(axis=(0, 1, 2))
    return [y, to_padded[:, pad : pad + rows, pad : pad + columns], to_kernel]


@pytest.mark.parametrize(
    ("way", "shape", "edge"),
    [
        ("ours", (2, 9, 5, 3), 7),  # tiles of 6 rows
        ("ours", (3, 1, 2, 4), 7),  # maps smaller than the kernel
        ("ours", (1, 2, 40, 2), 3),  # tiles of one row and 32 columns
        ("xla", (2, 9, 5, 3), 7),
    ],
)
def test_maps_and_gradients_are_those_of_the_sum(way, shape, edge, monkeypatch):
    if way == "xla":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape), rng.normal(size=(edge, edge, 1, shape[-1])) / edge

    def weighted(x, kernel):
        y = convolve_depthwise(x, kernel)
        return (y * weights_like(y).astype(jnp.float32)).sum(), y

    call = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))
    (_, y), gradients = call(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    for found, expected in zip((y, *gradients), in_float64(x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_bfloat16_is_xlas_own():
    x, kernel = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((7, 7, 1, 2), jnp.bfloat16)
    text = jax.jit(convolve_depthwise).lower(x, kernel).as_text()
    assert "convolution" in text
    assert depthwise.convolve_depthwise(x, kernel).dtype == jnp.bfloat16
