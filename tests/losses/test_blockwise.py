"""Blocks against the whole matrix in float64, and what they save."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from awcl_jax.losses.awcl import awcl_loss
from awcl_jax.losses.blockwise import log_denominators


def unit_rows(n: int, d: int = 8, *, near: float = 0.0, seed: int = 0) -> np.ndarray:
    """Unit rows; with `near`, all within about so much of one point."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    if near:
        z = np.eye(d)[0] + near * z
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def whole(z: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """D(i), and the gradient of sum_i i D(i), from the whole matrix."""
    logits = z @ z.T / t
    np.fill_diagonal(logits, -np.inf)
    weighted = np.arange(len(z))[:, None] * softmax(logits, axis=1) / t
    return logsumexp(logits, axis=1), weighted @ z + weighted.T @ z


@functools.cache
def compiled(t: float, block_size: int, *, symmetric: bool):
    """The gradient of sum_i i D(i), and D, as a function of the rows."""

    def weighted(z):
        ids = jnp.arange(len(z))
        other, other_ids = (z, ids) if symmetric else (jnp.array(z, copy=True), ids + 0)
        denominators = log_denominators(
            z, other, anchor_ids=ids, contrast_ids=other_ids, temperature=t, block_size=block_size
        )
        return (ids * denominators).sum(), denominators

    return jax.jit(jax.grad(weighted, has_aux=True))


def in_blocks(z, t: float, block_size: int, *, symmetric: bool, dtype=jnp.float32):
    gradient, denominators = compiled(t, block_size, symmetric=symmetric)(jnp.asarray(z, dtype))
    return denominators, gradient


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "block_size",  # of 13 rows: dividing, not dividing, larger
    [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow), 13, 50],
)
def test_blocks_are_the_whole(block_size, symmetric):
    z = unit_rows(13)
    denominators, gradient = in_blocks(z, 0.1, block_size, symmetric=symmetric)
    wanted, wanted_gradient = whole(z, 0.1)
    np.testing.assert_allclose(denominators, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("near", [0.0, 1e-3])
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.025, 0.07, 1.0])
def test_low_temperatures_and_near_identical_rows_are_stable(temperature, near):
    # Opposite rows too: with 0.01 their exponentials would vanish beside a shift of 1 / t.
    z = np.concatenate([unit_rows(6, near=near), -unit_rows(1, near=near)])
    denominators, gradient = in_blocks(z, temperature, 3, symmetric=True)
    wanted, _ = whole(z, temperature)
    np.testing.assert_allclose(denominators, wanted, atol=2e-5 / temperature)
    assert np.isfinite(gradient).all()


def test_bfloat16_rows_are_multiplied_into_float32():
    rounded = jnp.asarray(unit_rows(10), jnp.bfloat16)
    denominators, gradient = in_blocks(rounded, 0.1, 4, symmetric=True, dtype=jnp.bfloat16)
    assert denominators.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(denominators, whole(np.asarray(rounded, np.float64), 0.1)[0], rtol=1e-5)


def test_a_row_alone_has_no_denominator_and_no_gradient():
    for symmetric in (True, False):
        denominators, gradient = in_blocks(unit_rows(1), 0.1, 1, symmetric=symmetric)
        assert denominators[0] == -np.inf
        np.testing.assert_array_equal(gradient, 0)


def extra_bytes(n: int, block_size: int | None) -> int:
    """Memory beside inputs and results that the compiled loss and its gradient take for n rows."""
    ids = jnp.arange(n)

    def mean_loss(z, groups):
        return awcl_loss(
            z,
            z,
            anchor_ids=ids,
            contrast_ids=ids,
            anchor_groups=groups,
            contrast_groups=groups,
            temperature=0.1,
            block_size=block_size,
        ).mean()

    shapes = jax.ShapeDtypeStruct((n, 128), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(mean_loss)).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_rows_and_not_with_their_square():
    whole_matrix = 4 * 4096 * 4096
    assert extra_bytes(4096, 4096) > whole_matrix
    assert extra_bytes(4096, None) < whole_matrix / 2  # by default in blocks
    assert extra_bytes(8192, 256) < 2.5 * extra_bytes(4096, 256)
