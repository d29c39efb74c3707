"""Losses of the downstream tasks, on one device's rows; a loss that devices cannot average returns sums to average."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Integer


def cross_entropy(logits: Float[Array, "*b k"], labels: Integer[Array, "*b"]) -> Float[Array, ""]:
    """Return the mean over frames (and pixels) of -log softmax(logits)[label]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32)).mean()


def overlap_sums(logits: Float[Array, "b h w k"], masks: Integer[Array, "b h w"]) -> Float[Array, "3 k"]:
    """Return means over all pixels of p y, p and y per class: p = softmax(logits), y = 1 where the mask has it."""
    p, y = jax.nn.softmax(logits), jax.nn.one_hot(masks, logits.shape[-1])
    return jnp.stack([(p * y).mean((0, 1, 2)), p.mean((0, 1, 2)), y.mean((0, 1, 2))])


def dice_loss(sums: Float[Array, "3 k"]) -> Float[Array, ""]:
    """Return 1 minus the soft Dice of the batch, averaged over the structures in it.

        dice_loss = 1 - mean over structures c with sum y_c > 0 of 2 sum p_c y_c / (sum p_c + sum y_c)

    The sums are over all pixels of the batch, as in nnU-Net's `batch_dice` (Isensee et al. 2021): over those of one
    frame, Dice jumps when a structure of few pixels appears or disappears. Class 0, the background, is left out. A
    batch without any structure has loss 0.

    Args:
      sums: from `overlap_sums`, averaged over devices.
    """
    both, predicted, true = sums[:, 1:]
    shown = true > 0
    dice = jnp.where(shown, 2 * both / jnp.where(shown, predicted + true, 1.0), 0.0)
    return jnp.where(shown.any(), 1 - dice.sum() / jnp.maximum(shown.sum(), 1), 0.0)
