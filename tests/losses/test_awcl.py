"""The loss against loops in float64 that are written straight from the formula."""

import functools
import inspect
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.awcl import ABSENT, awcl_loss, groups_from_label_sets, groups_from_labels
from awcl_jax.runtime.errors import InputError


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
    groups = groups_of(case)
    z = unit_rows(len(groups), d=3)
    return z, slow_loss(z, groups, 0.1), slow_gradient(z, groups, 0.1)


def slow_gradient(z: np.ndarray, groups: np.ndarray, t: float) -> np.ndarray:
    """Gradient of the mean loss by central differences."""
    step, gradient = 1e-5, np.zeros_like(z)
    for at in np.ndindex(*z.shape):
        there, back = z.copy(), z.copy()
        there[at] += step
        back[at] -= step
        gradient[at] = (slow_loss(there, groups, t).mean() - slow_loss(back, groups, t).mean()) / (2 * step)
    return gradient


# Compiled as a whole: operation by operation it would take six times as long.
compiled_loss = jax.jit(awcl_loss, static_argnames=("temperature", "block_size", "group_weights"))


def loss_of(z, groups, t=0.1, **options):
    ids = jnp.arange(len(z))
    groups = jnp.asarray(groups)
    z = jnp.asarray(z, options.pop("dtype", jnp.float32))
    return compiled_loss(
        z, z, anchor_ids=ids, contrast_ids=ids, anchor_groups=groups, contrast_groups=groups, temperature=t, **options
    )


def two_views(labels) -> np.ndarray:
    labels = np.asarray(labels)
    return np.tile(np.asarray(groups_from_labels(jnp.asarray(labels), jnp.arange(labels.size))), 2)


CASES = {
    "labelled": (two_views, [0, 1, 0, 2, 1, 0]),
    "unlabelled": (two_views, [UNLABELLED] * 6),
    "mixed": (two_views, [0, UNLABELLED, 0, 3, UNLABELLED, 3]),
    "a class of one frame": (two_views, [0, 0, 1, 2, 2, 2]),
    "one view, with anchors that have no positive": (np.array, [0, 0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 7]),
    "all of one class": (two_views, [4] * 6),
}


@functools.cache
def groups_of(case: str) -> np.ndarray:
    make, labels = CASES[case]
    return make(labels)


@functools.partial(jax.jit, static_argnames="block_size")
def loss_and_gradient(z, groups, block_size):
    """The losses, and the gradient of their mean; compiled once for all cases, which are of as many rows."""

    def mean_loss(z):
        losses = loss_of(z, groups, block_size=block_size)
        return losses.mean(), losses

    gradient, losses = jax.grad(mean_loss, has_aux=True)(z)
    return losses, gradient


@pytest.mark.quick
@pytest.mark.parametrize("block_size", [None, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 1000))])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_formula(case, block_size):
    z, values, gradient = expected(case)
    losses, found = loss_and_gradient(jnp.asarray(z, jnp.float32), jnp.asarray(groups_of(case)), block_size)
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
    shard = compiled_loss(
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
    losses = compiled_loss(
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


def test_a_single_anchor_has_no_loss_and_no_gradient():
    z = jnp.asarray(unit_rows(1), jnp.float32)
    value, gradient = jax.value_and_grad(lambda z: loss_of(z, [3]).sum())(z)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.quick
@pytest.mark.parametrize(("options", "what"), [({"t": 0.0}, "temperature"), ({"block_size": 0}, "block_size")])
def test_bad_settings_are_named(options, what):
    with pytest.raises(InputError, match=what):
        loss_of(unit_rows(4), [0, 0, 1, 1], **options)


# Several groups, several rows of one id, rows that are not there. ----------------------------------------------------


def slow_general(z, anchors, ids, groups, weights, t) -> np.ndarray:
    """L(i) of the anchors among rows with sets of groups, one logarithm at a time."""
    losses = []
    for i in anchors:
        others = [k for k in range(len(z)) if ids[k] != ids[i] and ids[k] != ABSENT]
        denominator = sum(math.exp(z[i] @ z[k] / t) for k in others)
        weighted, all_weights = 0.0, 0.0
        for group, weight in zip(groups[i], weights, strict=True):
            if group == ABSENT:
                continue
            logs = [math.log(math.exp(z[i] @ z[k] / t) / denominator) for k in others if group in groups[k]]
            weighted += weight * (-sum(logs) / len(logs) if logs else 0.0)
            all_weights += weight
        losses.append(weighted / all_weights if all_weights else 0.0)
    return np.array(losses)


def general(z, anchors, ids, groups, weights, t, block_size=None):
    return compiled_loss(
        z[anchors],
        z,
        anchor_ids=ids[anchors],
        contrast_ids=ids,
        anchor_groups=groups[anchors],
        contrast_groups=groups,
        group_weights=weights,
        temperature=t,
        block_size=block_size,
    )


def label_sets() -> np.ndarray:
    """Two views of frames that show two structures, one, none or three."""
    labels = np.array([[0, 1, -1], [1, -1, -1], [-1, -1, -1], [2, 0, 1], [-1, -1, -1], [2, -1, -1], [3, -1, -1]])
    return np.tile(np.asarray(groups_from_label_sets(jnp.asarray(labels), jnp.arange(7))), (2, 1))


def fine_and_coarse() -> np.ndarray:
    labels = np.array([[0, 10], [1, 10], [0, 10], [-1, 11], [2, 11], [-1, -1], [-1, -1]])
    return np.tile(np.asarray(groups_from_labels(jnp.asarray(labels), jnp.arange(7))), (2, 1))


GENERAL = {
    "structures": (label_sets, np.arange(14), (1.0, 1.0, 1.0)),
    "fine and coarse": (fine_and_coarse, np.arange(14), (0.75, 0.25)),
    "one of two counts": (fine_and_coarse, np.arange(14), (0.0, 1.0)),
    "a queue of keys, two of them of one frame, two not there yet": (
        fine_and_coarse,
        np.array([0, 1, 2, 3, 4, 5, 6, 0, 1, 7, 0, 5, ABSENT, ABSENT]),
        (1.0, 1.0),
    ),
}


@pytest.mark.parametrize(
    ("case", "block_size"),
    [
        ("structures", None),
        ("fine and coarse", 3),
        ("a queue of keys, two of them of one frame, two not there yet", None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("structures", 3),
                ("fine and coarse", None),
                ("a queue of keys, two of them of one frame, two not there yet", 3),
                ("one of two counts", None),
                ("one of two counts", 3),
            ]
        ),
    ],
)
def test_several_groups_are_the_weighted_sum_of_their_losses(case, block_size):
    make_groups, ids, weights = GENERAL[case]
    groups = make_groups()
    z = unit_rows(14, d=4)
    if "queue" in case:
        groups[[7, 10]], groups[8], groups[11] = groups[0], groups[1], groups[5]  # one frame, one set of groups
    anchors = np.array([0, 1, 3, 4, 5, 6])
    expected_losses = slow_general(z, anchors, ids, groups, weights, 0.2)

    def summed(z):
        losses = general(z, anchors, jnp.asarray(ids), jnp.asarray(groups), weights, 0.2, block_size)
        return losses.sum(), losses

    gradient, losses = jax.jit(jax.grad(summed, has_aux=True))(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(losses, expected_losses, rtol=3e-6, atol=3e-6)
    direction, step = np.random.default_rng(1).normal(size=z.shape), 1e-5
    there, back = (slow_general(z + s * direction, anchors, ids, groups, weights, 0.2).sum() for s in (step, -step))
    assert (np.asarray(gradient) * direction).sum() == pytest.approx((there - back) / (2 * step), rel=1e-4)


def test_rows_compared_with_themselves_may_be_absent_too():
    groups, ids = fine_and_coarse(), np.arange(14)
    ids[[3, 9]] = ABSENT
    z = unit_rows(14, d=4)
    present = np.flatnonzero(ids != ABSENT)
    ids, groups, rows = jnp.asarray(ids), jnp.asarray(groups), jnp.asarray(z, jnp.float32)
    losses = compiled_loss(
        rows, rows, anchor_ids=ids, contrast_ids=ids, anchor_groups=groups, contrast_groups=groups, temperature=0.2
    )
    expected_losses = slow_general(z, present, np.asarray(ids), np.asarray(groups), (1, 1), 0.2)
    np.testing.assert_allclose(losses[present], expected_losses, rtol=3e-6, atol=3e-6)
    np.testing.assert_array_equal(losses[jnp.array([3, 9])], 0)


def test_groups_of_label_sets_by_hand():
    labels, rows = jnp.array([[4, 7], [7, -1], [-1, -1]]), jnp.array([5, 6, 7])
    np.testing.assert_array_equal(groups_from_label_sets(labels, rows), [[4, 7], [7, ABSENT], [-8, ABSENT]])
    np.testing.assert_array_equal(groups_from_labels(labels, rows), [[4, 7], [7, -14], [-15, -16]])


# Bad input. ----------------------------------------------------------------------------------------------------------


def lone(z):
    ids = jnp.arange(len(z))
    return awcl_loss(z, z, anchor_ids=ids, contrast_ids=ids, anchor_groups=ids, contrast_groups=ids, temperature=0.1)


def test_no_anchor_with_a_positive_costs_nothing_and_is_said():
    z = jnp.asarray(unit_rows(4), jnp.float32)
    with pytest.warns(UserWarning, match="^4 of 4 anchors have no positive"):
        np.testing.assert_array_equal(lone(z), 0)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda z: lone(z).sum()))(z), 0)


def test_rows_that_are_not_unit_length_are_refused():
    z = jnp.asarray(unit_rows(4), jnp.float32).at[2].multiply(3)
    with pytest.raises(InputError, match=r"row 2 of anchors has length 3\.$"):
        lone(z)
    jax.jit(lone)(z)  # not looked at
    error, _ = checkify.checkify(jax.jit(lone))(z)
    with pytest.raises(checkify.JaxRuntimeError, match="rows of unit length"):
        error.throw()
    checkify.checkify(jax.jit(lone))(z.at[2].divide(3))[0].throw()


def with_absent_rows(z, contrast, ids, groups):
    return awcl_loss(
        z,
        contrast,
        anchor_ids=ids[: len(z)],
        contrast_ids=ids,
        anchor_groups=groups[: len(z)],
        contrast_groups=groups,
        temperature=0.1,
    )


def test_rows_that_are_absent_need_no_unit_length():
    """A queue of six rows of which two are not filled yet, with an absent anchor."""
    z = jnp.asarray(unit_rows(6), jnp.float32).at[2].set(0.0).at[5].multiply(7.0)
    ids = jnp.array([0, 1, ABSENT, 3, 4, ABSENT])
    groups = jnp.array([0, 1, 0, 0, 1, 1])
    losses = with_absent_rows(z[:3], z, ids, groups)
    present = jnp.array([0, 1, 3, 4])
    np.testing.assert_allclose(
        losses[:2], slow_loss(np.asarray(z[present]), np.array([0, 1, 0, 1]), 0.1)[:2], rtol=1e-5
    )
    assert losses[2] == 0
    checked = checkify.checkify(jax.jit(with_absent_rows))
    checked(z[:3], z, ids, groups)[0].throw()
    # The same rows are looked at where they are present.
    with pytest.raises(InputError, match=r"row 2 of anchors has length 0\.$"):
        with_absent_rows(z[:3], z, ids.at[2].set(2), groups)
    with pytest.raises(checkify.JaxRuntimeError, match="some rows of contrast are not"):
        checked(z[:2], z, ids.at[5].set(5), groups)[0].throw()


def test_absent_anchors_are_not_alone():
    z, ids = jnp.asarray(unit_rows(4), jnp.float32), jnp.array([0, 1, 2, ABSENT])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_absent_rows(z, z, ids, jnp.array([0, 0, 0, 1]))
    with pytest.warns(UserWarning, match="^1 of 3 anchors have no positive"):
        with_absent_rows(z, z, ids, jnp.array([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"contrast_groups": np.zeros(3, int)}, "contrast must have one id .* 4 rows, 4 ids and 3 entries"),
        ({"anchor_ids": np.arange(5)}, "anchors must have one id .* 4 rows, 5 ids and 4 entries"),
        ({"anchor_groups": np.zeros((4, 2), int)}, "same number of groups; got 2, 1 and 2"),
        ({"group_weights": (1.0, 1.0)}, "same number of groups; got 1, 1 and 2"),
        ({"group_weights": (-1.0,)}, "must be finite, >= 0 and not all 0"),
        ({"group_weights": (float("nan"),)}, "must be finite"),
        ({"group_weights": (float("inf"),)}, "must be finite"),
        ({"group_weights": (1e39,)}, "must be finite"),
        ({"group_weights": (1e-39,)}, "not all 0"),
        ({"group_weights": (0.0,)}, "not all 0"),
        ({"temperature": 0.0}, "at least 1e-06 and finite; got 0"),
        ({"temperature": 1e-39}, "at least 1e-06 and finite; got 1e-39"),
        ({"temperature": float("nan")}, "at least 1e-06"),
        ({"temperature": float("inf")}, "and finite; got inf"),
        ({"block_size": 0}, "at least 1"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    z = jnp.asarray(unit_rows(4), jnp.float32)
    settings = {
        "anchor_ids": np.arange(4),
        "contrast_ids": np.arange(4),
        "anchor_groups": np.zeros(4, int),
        "contrast_groups": np.zeros(4, int),
        "temperature": 0.1,
    }
    given = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in (settings | change).items()}
    with pytest.raises(InputError, match=message):
        inspect.unwrap(awcl_loss)(z, z, **given)  # before the annotations are looked at
