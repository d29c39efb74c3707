"""The pretraining step: augment, encode, gather, contrast, average, update."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from awcl_jax.augment.draws import view_keys
from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import two_views
from awcl_jax.losses.awcl import LossOptions, awcl_loss, groups_from_labels
from awcl_jax.losses.ring import ring_awcl_loss
from awcl_jax.pretrain import monitors
from awcl_jax.runtime import sharding
from awcl_jax.train.momentum import Momentum
from awcl_jax.train.optim import global_norm
from awcl_jax.train.state import TrainState

_MONITORED = 1024  # frames that the monitors of collapse use


def make_step(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule,
    augmentation: Augmentation,
    loss: LossOptions,
    chunks: int = 1,
    momentum: float | None = None,
    seed: int,
) -> sharding.Step:
    """Make the body of a pretraining step for one device.

    The loss is averaged over devices *before* it is differentiated, and the gradients are averaged after: alone, the
    first is wrong under `pmap` and the second under `shard_map`; together they are exact under both.

    If the loss or the gradient is not finite, the step changes only the step count.

    Args:
      model: maps frames to unit embeddings, as `ContrastiveModel`; batch norm is synchronised over `sharding.AXIS`.
      optimiser: of the parameters.
      learning_rate: the optimiser's, for the monitors.
      augmentation: how the views are made.
      loss: how the embeddings are contrasted, over which devices.
      chunks: parts in which a batch is encoded, one by one, and again for the gradient; see `encode_in_chunks`.
      momentum: share of the old parameters that the momentum encoder keeps, for a state with `momentum`; None
        contrasts the two views of each batch instead.
      seed: of the views.

    Returns:
      A function of (state, batch) for `sharding.map_step`; the batch holds this device's `image`, `label`, `row`,
      for the momentum encoder `frame`, and for the beams of each frame's fan `fans`.
    """
    settings: dict[str, Any] = {
        "temperature": loss.temperature,
        "block_size": loss.block_size,
        "group_weights": loss.group_weights,
    }

    draws = getattr(getattr(model, "encoder", None), "draws", False)

    def two_view_loss(
        params: PyTree, state: TrainState, batch: dict[str, Array], views: Array
    ) -> tuple[Array, dict[str, Any]]:
        z, batch_stats = encode_in_chunks(model, params, state.batch_stats, views, chunks, keys_of(state, batch))
        rows = z.reshape(-1, z.shape[-1])
        ids, groups = _view_ids(batch["row"]), _per_view(groups_from_labels(batch["label"], batch["row"]))
        if loss.exchange == "ring":
            losses = ring_awcl_loss(rows, ids=ids, groups=groups, **settings)
        else:
            anchors = rows, ids, groups
            contrast = sharding.gather(anchors) if loss.exchange == "gather" else anchors
            losses = awcl_loss(
                anchors[0],
                contrast[0],
                anchor_ids=anchors[1],
                contrast_ids=contrast[1],
                anchor_groups=anchors[2],
                contrast_groups=contrast[2],
                **settings,
            )
        compared = 2 * views.shape[1] * sharding.device_count() - 1
        return sharding.mean(losses.mean()), {"z": z, "batch_stats": batch_stats, "compared": compared}

    def queue_loss(
        params: PyTree, state: TrainState, batch: dict[str, Array], views: Array
    ) -> tuple[Array, dict[str, Any]]:
        assert momentum is not None
        assert state.momentum is not None, "the queue is part of the state from the start"
        key_params = jax.lax.stop_gradient(state.momentum.follow(params, momentum))
        first, second = (None, None) if (drawn := keys_of(state, batch)) is None else (drawn[:1], drawn[1:])
        keys, key_stats = encode_in_chunks(model, key_params, state.momentum.batch_stats, views[1:], chunks, second)
        keys = jax.lax.stop_gradient(keys)
        batch_size = views.shape[1] * sharding.device_count()
        new = (keys[0], batch["frame"][:, 1], batch["label"])
        queue = state.momentum.queue.push(*sharding.in_row_order(new, batch["row"], count=batch_size))
        ids, groups = queue.contrast(batch_size)
        queries, batch_stats = encode_in_chunks(model, params, state.batch_stats, views[:1], chunks, first)
        losses = awcl_loss(
            queries[0],
            queue.z,
            anchor_ids=batch["frame"][:, 0],
            contrast_ids=ids,
            anchor_groups=groups_from_labels(batch["label"], batch["row"]),
            contrast_groups=groups,
            **settings,
        )
        return sharding.mean(losses.mean()), {
            "z": jnp.concatenate([queries, keys]),
            "batch_stats": batch_stats,
            "compared": queue.filled,
            "momentum": Momentum(key_params, key_stats, queue),
        }

    def keys_of(state: TrainState, batch: dict[str, Array]) -> Key[Array, "2 b"] | None:
        return view_keys(rows=batch["row"], step=state.step, seed=seed) if draws else None

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, PyTree]:
        address = {"rows": batch["row"], "step": state.step, "seed": seed}
        views = two_views(batch["image"], **address, options=augmentation, fans=batch.get("fans"))
        grad_fn = jax.value_and_grad(two_view_loss if momentum is None else queue_loss, has_aux=True)
        (value, extras), grads = grad_fn(state.params, state, batch, views)
        grads = sharding.mean(grads)
        norm = global_norm(grads)
        report = {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "collapsed_loss": monitors.collapsed_loss(extras["compared"]),
            **_monitors(extras["z"], batch["row"]),
        }
        state = state.update(
            grads=grads,
            batch_stats=extras["batch_stats"],
            optimiser=optimiser,
            momentum=extras.get("momentum"),
            where=jnp.isfinite(value) & jnp.isfinite(norm),
        )
        return state, sharding.mean(report)

    return step


def encode_in_chunks(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    views: Float[Array, "v b h w c"],
    chunks: int,
    keys: Key[Array, "v b"] | None = None,
) -> tuple[Float[Array, "v b d"], PyTree]:
    """Return embeddings of views and the new running statistics, in the memory of one chunk of the frames at a time.

    Gradient caching (Gao et al. 2021, Sec. 3.2): a chunk is encoded without storing activations, and encoded again when
    the gradient of the loss with respect to its embeddings is known. So the encoder's memory does not bound the
    contrasted batch, and the numbers are those of a single pass, except for batch norm: each chunk is normalised by its
    own statistics, over all devices and the same in both passes, and the running statistics use the chunks' mean. A
    chunk has every `chunks`-th row of the batch, whatever the number of devices.

    Args:
      model: as in `make_step`.
      params: its parameters.
      batch_stats: its running statistics.
      views: of this device's rows.
      chunks: parts of the batch; must divide the number of rows b.
      keys: of the views, for an encoder that draws random numbers in training; each pass of a chunk draws the same.
    """
    v, b, *picture = views.shape

    def encode(
        params: PyTree, pictures: Float[Array, "n h w c"], keys: Key[Array, " n"] | None
    ) -> tuple[Float[Array, "n d"], PyTree]:
        drawn: dict[str, Any] = {} if keys is None else {"keys": keys}
        z, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, pictures, train=True, mutable=["batch_stats"], **drawn
        )
        return z, updated.get("batch_stats", {})

    if chunks == 1:
        z, updated = encode(params, views.reshape(v * b, *picture), None if keys is None else keys.reshape(v * b))
        return z.reshape(v, b, -1), updated
    assert b % chunks == 0, f"{chunks} chunks must divide the {b} rows of a device"

    def in_parts(x: Array) -> Array:
        # Row r is in chunk r % chunks: [v, b / chunks, chunks, ...] -> [chunks, v * b / chunks, ...].
        parts = jnp.moveaxis(x.reshape(v, b // chunks, chunks, *x.shape[2:]), 2, 0)
        return parts.reshape(chunks, v * b // chunks, *x.shape[2:])

    # Each device sums the gradient over its chunks before the sum over devices.
    own = sharding.vary(params)
    parts = jax.tree.map(in_parts, (views, keys))
    z, updated = jax.lax.map(jax.checkpoint(lambda part: encode(own, *part)), parts)
    z = jnp.moveaxis(z.reshape(chunks, v, b // chunks, -1), 0, 2).reshape(v, b, -1)
    return z, jax.tree.map(lambda statistics: statistics.mean(axis=0), updated)


def _view_ids(rows: Int[Array, " b"]) -> Int[Array, " 2*b"]:
    """Return a number for every view of every row, independent of the row's device."""
    return jnp.concatenate([2 * rows, 2 * rows + 1])


def _per_view(groups: Array) -> Array:
    return jnp.concatenate([groups, groups])


@jax.named_scope("monitors")
def _monitors(z: Float[Array, "2 b d"], rows: Int[Array, " b"]) -> dict[str, Float[Array, ""]]:
    """Compute the monitors of collapse, over the batch or its first rows."""
    frames = jnp.swapaxes(jax.lax.stop_gradient(z), 0, 1)
    count = min(_MONITORED, frames.shape[0] * sharding.device_count())
    z = jnp.swapaxes(sharding.in_row_order(frames, rows, count=count), 0, 1)
    return {
        "spread": monitors.spread(z),
        "alignment": monitors.alignment(z),
        "uniformity": monitors.uniformity(z),
    }
