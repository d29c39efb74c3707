"""The pretraining step: augment, encode, gather, contrast, average, update."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from awcl_jax import metrics, sharding
from awcl_jax.augment import Augmentation, two_views
from awcl_jax.losses import awcl_loss, groups_from_labels
from awcl_jax.train_state import TrainState


def make_step(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule,
    augmentation: Augmentation,
    temperature: float,
    block_size: int | None = None,
    seed: int,
    gather: bool = True,
) -> sharding.Step:
    """The body of a pretraining step for one device.

    The loss is averaged over devices *before* it is differentiated, and the gradients are averaged after: alone, the
    first is wrong under `pmap` and the second under `shard_map`; together they are exact under both.

    Args:
      model: frames to unit embeddings, as `ContrastiveModel`; its batch norm synchronised over `sharding.AXIS`.
      optimiser: of the parameters.
      learning_rate: the optimiser's, for the metrics.
      augmentation: how the views are made.
      temperature: of the loss.
      block_size: anchors whose similarities are held at a time.
      seed: of the views.
      gather: contrast with the rows of all devices; without it each device is a batch of its own, and the numbers
        depend on how many there are.

    Returns:
      A function of (state, batch) for `sharding.map_step`; the batch holds this device's `image`, `label` and `row`.
    """

    def loss_fn(params: PyTree, state: TrainState, batch: dict[str, Array]) -> tuple[Array, Any]:
        views = two_views(batch["image"], rows=batch["row"], step=state.step, seed=seed, options=augmentation)
        z, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            views.reshape(-1, *views.shape[2:]),
            train=True,
            mutable=["batch_stats"],
        )
        groups = groups_from_labels(batch["label"], batch["row"])
        anchors = {"z": z, "id": _view_ids(batch["row"]), "group": jnp.tile(groups, 2)}
        contrast = sharding.gather(anchors) if gather else anchors
        losses = awcl_loss(
            anchors["z"],
            contrast["z"],
            anchor_ids=anchors["id"],
            contrast_ids=contrast["id"],
            anchor_groups=anchors["group"],
            contrast_groups=contrast["group"],
            temperature=temperature,
            block_size=block_size,
        )
        return sharding.mean(losses.mean()), (contrast, updated["batch_stats"])

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, PyTree]:
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (contrast, batch_stats)), grads = grad_fn(state.params, state, batch)
        grads = sharding.mean(grads)
        report = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **_monitors(contrast)}
        report["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        return state.update(grads=grads, batch_stats=batch_stats, optimiser=optimiser), sharding.mean(report)

    return step


def _view_ids(rows: Int[Array, " b"]) -> Int[Array, " 2*b"]:
    """A number for every view of every row, the same on whichever device the row is."""
    return jnp.concatenate([2 * rows, 2 * rows + 1])


def _monitors(contrast: dict[str, Array]) -> dict[str, Float[Array, ""]]:
    """Signs of collapse, over the whole batch; view 0 of each row before view 1."""
    order = jnp.argsort(contrast["id"])
    z = contrast["z"][order]
    z = jax.lax.stop_gradient(jnp.stack([z[0::2], z[1::2]]))
    return {
        "spread": metrics.spread(z),
        "alignment": metrics.alignment(z),
        "uniformity": metrics.uniformity(z),
        "collapsed_loss": jnp.asarray(metrics.collapsed_loss(contrast["z"].shape[0])),
    }
