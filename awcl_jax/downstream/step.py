"""The training step of a downstream task: augment, predict, compare, average, update."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from awcl_jax.augment.draws import view_keys
from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import augment, augment_with_masks
from awcl_jax.downstream.losses import cross_entropy, dice_loss, overlap_sums
from awcl_jax.runtime import sharding
from awcl_jax.train.optim import global_norm
from awcl_jax.train.state import TrainState

Apply = Callable[[Array], Array]
Batch = Mapping[str, Array]
Terms = dict[str, Float[Array, ""]]
Objective = Callable[[Apply, Batch, Array], Terms]
"""(views to logits, this device's rows, step) -> the terms of the loss over all devices; the loss is their sum."""


def classification(*, augmentation: Augmentation, seed: int) -> Objective:
    """Return the objective of classification: cross-entropy of the frames' `label`."""

    def terms(apply: Apply, batch: Batch, step: Array) -> Terms:
        address = {"rows": batch["row"], "step": step, "seed": seed}
        views = augment(batch["image"], view=0, **address, options=augmentation, fans=batch.get("fans"))
        return {"cross_entropy": sharding.mean(cross_entropy(apply(views), batch["label"]))}

    return terms


def segmentation(*, augmentation: Augmentation, seed: int) -> Objective:
    """Return the objective of segmentation: cross-entropy of the `mask` pixels, and soft Dice of the whole batch."""

    def terms(apply: Apply, batch: Batch, step: Array) -> Terms:
        address = {"rows": batch["row"], "step": step, "seed": seed}
        views, masks = augment_with_masks(
            batch["image"], batch["mask"], **address, options=augmentation, fans=batch.get("fans")
        )
        logits = apply(views)
        return {
            "cross_entropy": sharding.mean(cross_entropy(logits, masks)),
            # The sums are averaged first: the Dice of all rows is not the mean of the devices' Dice.
            "dice_loss": dice_loss(sharding.mean(overlap_sums(logits, masks))),
        }

    return terms


def make_step(
    model: nn.Module,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    learning_rate: optax.Schedule,
    seed: int = 0,
) -> sharding.Step:
    """Make the body of a supervised step for one device.

    As in the pretraining step, the loss is averaged over devices before it is differentiated, and the gradients after;
    if either is not finite, the step changes only the step count.

    Args:
      model: maps views to logits; batch norm is synchronised over `sharding.AXIS`.
      optimiser: of the parameters.
      objective: the terms of the loss.
      learning_rate: the optimiser's, for the metrics.
      seed: of what an encoder draws in training; the same as the objective's.

    Returns:
      A function of (state, batch) for `sharding.map_step`.
    """

    def loss_fn(params: PyTree, state: TrainState, batch: Batch) -> tuple[Array, Any]:
        updated: dict[str, Any] = {}

        def apply(views: Array) -> Array:
            variables = {"params": params, "batch_stats": state.batch_stats}
            drawn: dict[str, Any] = {}
            if getattr(getattr(model, "encoder", None), "draws", False):
                drawn["keys"] = view_keys(rows=batch["row"], step=state.step, seed=seed, views=1)[0]
            logits, changed = model.apply(variables, views, train=True, mutable=["batch_stats"], **drawn)
            updated.update(changed)
            return logits

        terms = objective(apply, batch, state.step)
        # An encoder without batch norm, and its linear head, have no running statistics.
        return jnp.asarray(sum(terms.values())), (terms, updated.get("batch_stats", {}))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, PyTree]:
        (loss, (terms, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, state, batch)
        grads = sharding.mean(grads)
        norm = global_norm(grads)
        report = {"loss": loss, **terms, "gradient_norm": norm}
        report["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        state = state.update(grads=grads, batch_stats=batch_stats, optimiser=optimiser, where=finite)
        return state, sharding.mean(report)

    return step
