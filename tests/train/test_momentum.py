"""The queue against a loop over every key ever made, and a whole step against the formula."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import two_views
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.awcl import ABSENT, LossOptions, awcl_loss, groups_from_labels
from awcl_jax.pretrain.step import make_step
from awcl_jax.runtime import sharding
from awcl_jax.train.momentum import Momentum, Queue
from awcl_jax.train.state import TrainState
from tests.helpers.tiny_model import Tiny

TEMPERATURE, BATCH, SIZE = 0.2, 4, 10


def unit_rows(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def slow_loss(queries, frames, labels, keys) -> list[float]:
    """Losses of a batch of queries; `keys` are (embedding, frame, label, row of this batch or None), all that count."""
    losses = []
    for row, (query, frame, label) in enumerate(zip(queries, frames, labels, strict=True)):
        # Older keys of the same frame are neither positive nor negative.
        others = [key for key in keys if key[3] is not None or key[1] != frame]
        denominator = sum(math.exp(query @ z / TEMPERATURE) for z, *_ in others)
        positive = [
            z for z, _, key_label, key_row in others if (key_label == label if label != UNLABELLED else key_row == row)
        ]
        losses.append(-sum(math.log(math.exp(query @ z / TEMPERATURE) / denominator) for z in positive) / len(positive))
    return losses


BATCHES = [
    # Frame 1 comes back in every batch; the third batch fills the queue of 10 keys, the fourth overflows it twice.
    ([0, 1, 2, 3], [7, 7, UNLABELLED, 8]),
    ([4, 1, 5, 6], [8, 7, UNLABELLED, 9]),
    ([7, 1, 2, 8], [7, 7, UNLABELLED, UNLABELLED]),
    ([9, 1, 4, 3], [9, 7, 8, 8]),
]


def test_a_queue_serves_as_if_every_key_had_been_kept():
    queue, history = Queue.empty(SIZE, 5), []
    for step, (frames, labels) in enumerate(BATCHES):
        queries, keys = unit_rows(BATCH, seed=step), unit_rows(BATCH, seed=100 + step)
        queue = queue.push(
            jnp.asarray(keys, jnp.float32), jnp.asarray(frames, jnp.int32), jnp.asarray(labels, jnp.int32)
        )
        history = [(z, frame, label, None) for z, frame, label, _ in history]
        history += [(keys[row], frames[row], labels[row], row) for row in range(BATCH)]
        history = history[-SIZE:]
        assert queue.filled == len(history)
        ids, groups = queue.contrast(BATCH)
        losses = _jitted(queries, queue.z, jnp.asarray(frames), ids, jnp.asarray(labels), groups)
        np.testing.assert_allclose(losses, slow_loss(queries, frames, labels, history), rtol=1e-5)


@jax.jit
def _jitted(queries, z, frames, ids, labels, groups):
    # Under jit, because the empty places are not unit rows.
    return awcl_loss(
        jnp.asarray(queries, jnp.float32),
        z,
        anchor_ids=frames,
        contrast_ids=ids,
        anchor_groups=groups_from_labels(labels, jnp.arange(BATCH)),
        contrast_groups=groups,
        temperature=TEMPERATURE,
    )


def test_an_older_key_without_a_label_is_nobodys_positive():
    frames, labels = jnp.arange(2, dtype=jnp.int32), jnp.array([UNLABELLED, 5], jnp.int32)
    queue = Queue.empty(4, 3)
    for _ in range(2):
        queue = queue.push(jnp.ones((2, 3)), frames, labels)
    ids, groups = queue.contrast(2)
    assert ids.tolist() == [0, 1, -1, -2]
    assert groups.tolist() == [ABSENT, 5, -1, 5]


@pytest.mark.slow
def test_a_step_follows_the_trained_encoder_and_pulls_only_at_it():
    augmentation, optimiser, model = Augmentation(size=8), optax.sgd(0.5), Tiny()
    mesh = sharding.make_mesh(jax.devices()[:1])
    body = make_step(
        model,
        optimiser,
        learning_rate=optax.constant_schedule(0.5),
        augmentation=augmentation,
        loss=LossOptions(temperature=TEMPERATURE),
        momentum=0.75,
        seed=3,
    )
    step = sharding.map_step(body, mesh, donate=False)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))()
    state = TrainState.create(variables, optimiser, queue=Queue.empty(SIZE, 6))
    followed, history = state.params, []
    rng, rows = np.random.default_rng(0), np.arange(BATCH, dtype=np.int32)
    for number, (frames, labels) in enumerate(BATCHES[:3]):
        images = rng.integers(0, 256, (BATCH, 12, 12), np.uint8)
        followed = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, followed, state.params)
        views = two_views(images, rows=rows, step=number, seed=3, options=augmentation)
        keys = np.asarray(model.apply({"params": followed}, views[1], train=True), np.float64)
        history = [(z, frame, label, None) for z, frame, label, _ in history]
        history += [(keys[row], frames[row], labels[row], row) for row in range(BATCH)]

        def loss_of(params, views=views, frames=frames, labels=labels, history=history[-SIZE:]):
            queries = model.apply({"params": params}, views[0], train=True)
            return float(np.mean(slow_loss(np.asarray(queries, np.float64), frames, labels, history)))

        batch = {
            "image": images,
            "label": np.array(labels, np.int32),
            "row": rows,
            "frame": np.stack([frames, frames], axis=1).astype(np.int32),
        }
        before = state.params
        state, report = step(state, batch)
        assert report["loss"] == pytest.approx(loss_of(before), rel=1e-5)
        # Along the step's own direction the loss falls as fast as the gradient is long.
        gradient = jax.tree.map(lambda old, new: (old - new) / 0.5, before, state.params)
        length = float(optax.tree.norm(gradient))
        there, back = (loss_of(optax.tree.add_scale(before, distance / length, gradient)) for distance in (1e-3, -1e-3))
        assert (there - back) / 2e-3 == pytest.approx(length, rel=1e-2)
        for found, wanted in zip(jax.tree.leaves(state.momentum.params), jax.tree.leaves(followed), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert report["collapsed_loss"] == pytest.approx(math.log(SIZE))


def test_a_momentum_encoder_starts_as_a_copy():
    variables = {"params": {"w": jnp.ones(3)}, "batch_stats": {"m": jnp.zeros(2)}}
    momentum = Momentum.create(variables, Queue.empty(4, 2))
    assert momentum.params["w"] is not variables["params"]["w"]
    np.testing.assert_array_equal(momentum.params["w"], 1)
    np.testing.assert_array_equal(momentum.follow({"w": jnp.zeros(3)}, 0.9)["w"], np.float32(0.9))
