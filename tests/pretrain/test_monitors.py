"""Monitors against slow loops and known limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.pretrain import monitors

pytestmark = pytest.mark.quick


@jax.jit
def all_of(z):
    return [f(z) for f in (monitors.spread, monitors.alignment, monitors.uniformity, monitors.effective_rank)]


def unit_rows(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape)
    return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def test_alignment_and_uniformity_are_those_of_slow_loops():
    z = unit_rows(2, 9, 5).astype(np.float64)
    apart = [sum((z[0, i, j] - z[1, i, j]) ** 2 for j in range(5)) for i in range(9)]
    logs = []
    for view in z:
        pairs = [math.exp(-2 * sum((view[i] - view[j]) ** 2)) for i in range(9) for j in range(i)]
        logs.append(math.log(sum(pairs) / len(pairs)))
    _, alignment, uniformity, _ = all_of(z.astype(np.float32))
    assert alignment == pytest.approx(sum(apart) / 9, rel=1e-5)
    assert uniformity == pytest.approx(sum(logs) / 2, rel=1e-5)


def test_effective_rank_is_the_entropy_of_the_singular_values():
    rows = unit_rows(2, 30, 7).reshape(60, 7).astype(np.float64) * np.geomspace(1, 0.05, 7)
    squares = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    p = squares / squares.sum()
    rank = all_of(rows.reshape(2, 30, 7).astype(np.float32))[-1]
    assert rank == pytest.approx(math.exp(-sum(p * np.log(p))), rel=1e-4)


def test_monitors_of_a_uniform_encoder():
    d, b = 16, 1500
    spread, alignment, _, rank = all_of(unit_rows(2, b, d, seed=1))
    assert spread == pytest.approx(1, abs=0.01)
    # Independent views: E||x - y||^2 = 2. All d dimensions are in use.
    assert alignment == pytest.approx(2, abs=0.05)
    assert rank == pytest.approx(d, rel=0.01)


def test_monitors_of_a_collapsed_encoder():
    # Rounding differs from row to row, and may not look like sixteen dimensions in use.
    rounding = 1e-7 * np.random.default_rng(2).normal(size=(2, 50, 16))
    np.testing.assert_allclose(all_of((unit_rows(1, 1, 16) + rounding).astype(np.float32)), [0, 0, 0, 1], atol=1e-5)


def test_monitors_by_hand():
    # Two frames on the axes, the views of each equal: b = 2 rows (1, 0) and (0, 1), 2 apart squared.
    z = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]] * 2)
    # Each dimension is 0 or 1: deviation 1/2, times sqrt 2. All variance lies along (1, -1). log exp(-2 * 2) = -4.
    expected = [math.sqrt(2) / 2, 0, -4, 1]
    np.testing.assert_allclose(all_of(z), expected, atol=1e-5)


def test_collapsed_loss_is_the_contrastive_loss_of_one_point():
    # Eight equal rows, anchor 0 with positives 1 and 2: -1/2 sum_a log(exp(1/t) / (7 exp(1/t))) = log 7.
    t = 0.1
    softmax = math.exp(1 / t) / sum(math.exp(1 / t) for _ in range(7))
    assert monitors.collapsed_loss(7) == pytest.approx(-sum(math.log(softmax) for _ in range(2)) / 2)
