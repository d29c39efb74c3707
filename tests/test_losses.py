"""The loss against loops in float64 that are written straight from the formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.anatomy import UNLABELLED
from awcl_jax.errors import InputError
from awcl_jax.losses import awcl_loss, groups_from_labels


def unit_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def slow_loss(z: np.ndarray, groups: np.ndarray, t: float) -> np.ndarray:
    """L(i), one logarithm at a time."""
    losses = []
    for i in range(len(z)):
        denominator = sum(math.exp(z[i] @ z[k] / t) for k in range(len(z)) if k != i)
        logs = [
            math.log(math.exp(z[i] @ z[a] / t) / denominator)
            for a in range(len(z))
            if a != i and groups[a] == groups[i]
        ]
        losses.append(-sum(logs) / len(logs) if logs else 0.0)
    return np.array(losses)


@functools.cache
def expected(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, and the loss and gradient of the formula at them."""
    z = unit_rows(len(CASES[case]), d=3)
    return z, slow_loss(z, CASES[case], 0.1), slow_gradient(z, CASES[case], 0.1)


def slow_gradient(z: np.ndarray, groups: np.ndarray, t: float) -> np.ndarray:
    """Gradient of the mean loss by central differences."""
    step, gradient = 1e-5, np.zeros_like(z)
    for at in np.ndindex(*z.shape):
        there, back = z.copy(), z.copy()
        there[at] += step
        back[at] -= step
        gradient[at] = (slow_loss(there, groups, t).mean() - slow_loss(back, groups, t).mean()) / (2 * step)
    return gradient


def loss_of(z, groups, t=0.1, **options):
    ids = jnp.arange(len(z))
    groups = jnp.asarray(groups)
    z = jnp.asarray(z, options.pop("dtype", jnp.float32))
    return awcl_loss(
        z, z, anchor_ids=ids, contrast_ids=ids, anchor_groups=groups, contrast_groups=groups, temperature=t, **options
    )


def two_views(labels) -> np.ndarray:
    labels = np.asarray(labels)
    return np.tile(np.asarray(groups_from_labels(jnp.asarray(labels), jnp.arange(labels.size))), 2)


CASES = {
    "labelled": two_views([0, 1, 0, 2, 1, 0]),
    "unlabelled": two_views([UNLABELLED] * 6),
    "mixed": two_views([0, UNLABELLED, 0, 3, UNLABELLED, 3]),
    "a class of one frame": two_views([0, 0, 1, 2, 2, 2]),
    "one view, with anchors that have no positive": np.array([0, 0, 1, 2, 2, 3]),
    "all of one class": two_views([4] * 5),
}


@pytest.mark.parametrize("block_size", [None, 1, 5, 1000])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_formula(case, block_size):
    z, values, gradient = expected(case)

    @jax.jit
    def mean_loss(z):
        losses = loss_of(z, CASES[case], block_size=block_size)
        return losses.mean(), losses

    found, losses = jax.grad(mean_loss, has_aux=True)(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(losses, values, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-3, atol=1e-5)


def test_a_value_by_hand():
    # Three unit vectors, z0 = z1 = e1 of one group, z2 = e2 of another, t = 1.
    # L(0) = -log( e^1 / (e^1 + e^0) ) = log(1 + 1/e); L(1) the same; z2 has no positive.
    losses = loss_of(np.array([[1, 0], [1, 0], [0, 1]]), [0, 0, 1], t=1.0)
    np.testing.assert_allclose(losses, [math.log(1 + math.exp(-1))] * 2 + [0.0], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5])
def test_simclr_is_the_grouping_by_frame(temperature):
    b = 5
    z = unit_rows(2 * b)
    similarity = z @ z.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    own = np.concatenate([np.arange(b, 2 * b), np.arange(b)])
    top = similarity.max(axis=1, keepdims=True)
    nt_xent = np.log(np.exp(similarity - top).sum(axis=1)) + top[:, 0] - similarity[np.arange(2 * b), own]
    losses = loss_of(z, two_views([UNLABELLED] * b), t=temperature)
    np.testing.assert_allclose(losses, nt_xent, rtol=1e-5, atol=1e-5)


def test_scan_is_the_grouping_by_scan():
    scans = [7, 3, 7, 3, 9]
    z = unit_rows(10)
    np.testing.assert_allclose(loss_of(z, two_views(scans)), slow_loss(z, np.tile(scans, 2), 0.1), rtol=1e-5)


def test_two_unlabelled_frames_are_never_positives():
    z = unit_rows(4)
    z[1], z[3] = z[0], z[2]  # frames 0 and 1 look alike in both views
    groups = two_views([UNLABELLED, UNLABELLED])
    assert groups[0] != groups[1]
    assert (groups < 0).all()
    # Pulling them together would be free; as negatives they cost at least log 2.
    assert (np.asarray(loss_of(z, groups)) > math.log(2)).all()


def test_the_choice_of_positives_falls_anchor_by_anchor():
    # The published code looks at the first label of the batch only; here the order of frames does not matter.
    labels = np.array([UNLABELLED, 0, 0, 1, UNLABELLED, 1])
    z = unit_rows(12)
    order = np.array([3, 1, 4, 0, 5, 2])
    losses = np.asarray(loss_of(z, two_views(labels))).reshape(2, 6)
    shuffled = np.asarray(loss_of(z.reshape(2, 6, -1)[:, order].reshape(12, -1), two_views(labels[order])))
    np.testing.assert_allclose(shuffled.reshape(2, 6), losses[:, order], rtol=1e-5)


def test_a_shard_of_anchors_gets_its_share_of_the_losses():
    groups = two_views([0, 1, 0, UNLABELLED])
    z = jnp.asarray(unit_rows(8), jnp.float32)
    ids = jnp.arange(8)
    shard = awcl_loss(
        z[2:5],
        z,
        anchor_ids=ids[2:5],
        contrast_ids=ids,
        anchor_groups=jnp.asarray(groups)[2:5],
        contrast_groups=jnp.asarray(groups),
        temperature=0.1,
    )
    np.testing.assert_allclose(shard, loss_of(z, groups)[2:5], rtol=1e-6)


def test_self_pairs_go_by_id_and_not_by_place():
    groups = two_views([0, 1, 0])
    z, order = unit_rows(6), np.array([4, 0, 5, 2, 1, 3])
    ids = jnp.arange(6)
    losses = awcl_loss(
        jnp.asarray(z, jnp.float32),
        jnp.asarray(z[order], jnp.float32),
        anchor_ids=ids,
        contrast_ids=ids[order],
        anchor_groups=jnp.asarray(groups),
        contrast_groups=jnp.asarray(groups[order]),
        temperature=0.1,
    )
    np.testing.assert_allclose(losses, slow_loss(z, groups, 0.1), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_collapsed_embeddings_cost_the_logarithm_of_the_others(temperature):
    z = np.tile(unit_rows(1), (12, 1))
    losses = loss_of(z, two_views([0, 0, 1, UNLABELLED, 2, 2]), t=temperature)
    np.testing.assert_allclose(losses, math.log(11), rtol=1e-4)


def test_bfloat16_embeddings_are_contrasted_in_float32():
    groups = two_views([0, 1, 0, UNLABELLED])
    rounded = jnp.asarray(unit_rows(8), jnp.bfloat16)
    losses = loss_of(rounded, groups, dtype=jnp.bfloat16)
    assert losses.dtype == jnp.float32
    # Exact for the rounded rows: nothing is rounded a second time.
    np.testing.assert_allclose(losses, slow_loss(np.asarray(rounded, np.float64), groups, 0.1), rtol=1e-5)


def test_an_anchor_alone_in_the_world_costs_nothing_and_pulls_nowhere():
    z = jnp.asarray(unit_rows(1), jnp.float32)
    value, gradient = jax.value_and_grad(lambda z: loss_of(z, [3]).sum())(z)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(("options", "what"), [({"t": 0.0}, "temperature"), ({"block_size": 0}, "block_size")])
def test_bad_settings_are_named(options, what):
    with pytest.raises(InputError, match=what):
        loss_of(unit_rows(4), [0, 0, 1, 1], **options)
