"""Attention of each head against a slow version in float64, in both orders of computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models.attention import attend

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
QUERIES, KEYS, VALUES = (RNG.normal(size=(2, tokens, 3, 8)) for tokens in (4, 7, 7))
OUTER = RNG.normal(size=QUERIES.shape)  # of the gradient


def by_hand(q, k, v):
    """One query at a time."""
    found = np.zeros_like(q)
    for b, t, h in np.ndindex(q.shape[:3]):
        weights = np.exp([q[b, t, h] @ key / np.sqrt(q.shape[-1]) for key in k[b, :, h]])
        found[b, t, h] = sum(weight * value for weight, value in zip(weights / weights.sum(), v[b, :, h], strict=True))
    return found


def slope(which, at):
    """Derivative of the outputs' sum, weighted by OUTER, by differences."""
    ends = []
    for step in (-1e-5, 1e-5):
        given = [QUERIES.copy(), KEYS.copy(), VALUES.copy()]
        given[which][at] += step
        ends.append((by_hand(*given) * OUTER).sum())
    return (ends[1] - ends[0]) / 2e-5


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_value_and_gradient_by_hand(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    given = [jnp.asarray(x, jnp.float32) for x in (QUERIES, KEYS, VALUES)]
    np.testing.assert_allclose(attend(*given), by_hand(QUERIES, KEYS, VALUES), atol=1e-6)
    gradients = jax.grad(lambda given: jnp.sum(attend(*given) * OUTER))(given)
    for which, gradient in enumerate(gradients):
        for at in [(0, 0, 0, 0), (1, 3, 2, 7), (1, 2, 1, 4)]:
            np.testing.assert_allclose(gradient[at], slope(which, at), atol=2e-6)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_in_bfloat16_the_softmax_is_float32(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    # Two products of 300 and 301: as bfloat16 both would be 300, and the weights one half.
    q = jnp.full((1, 1, 1, 64), 8.0, jnp.bfloat16)
    k = jnp.zeros((1, 2, 1, 64), jnp.bfloat16).at[0, :, 0, :3].set(jnp.asarray([[256, 44, 0], [256, 44, 1]]))
    v = jnp.zeros((1, 2, 1, 64), jnp.bfloat16).at[0, 1].set(1)
    found = attend(q, k, v)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), 1 / (1 + np.exp(-1)), atol=2e-3)
