"""The anatomy-aware contrastive loss, without collectives.

Every embedding belongs to a *group*, and embeddings of one group attract each other. The groups define the method:

    AWCL        the frame's anatomy (fine or coarse); a unique group if the frame has no label
    scan        the frame's scan (patient metadata)
    SimCLR      a group per frame, so that only its own second view is positive

An embedding may be in several groups: of fine and of coarse anatomy, or of all the structures that its frame shows.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jaxtyping import Array, Float, Int

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.losses.blockwise import ABSENT, log_denominators
from awcl_jax.losses.positives import group_similarity
from awcl_jax.runtime.errors import InputError

__all__ = ["ABSENT", "LEAST_TEMPERATURE", "LossOptions", "awcl_loss", "groups_from_label_sets", "groups_from_labels"]

LEAST_TEMPERATURE = 1e-6
"""Cosines in float32 are exact to about 1e-7: divided by less, their rounding alone would decide the loss."""

_DENSE_BYTES = 2**24
_BLOCK = 256
_UNIT_TOLERANCE = 1e-2  # of a squared length, so that rows in bfloat16 count as unit rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossOptions:
    """How the loss of a step is computed.

    Attributes:
      temperature: divides all cosines.
      block_size: anchors whose similarities are in memory at a time; by default as many as fit.
      group_weights: weights of a frame's labels, if it has several, as in `awcl_loss`.
      exchange: `gather` the rows of all devices, or pass them around in a `ring`, which needs less memory; or `none` to
        contrast on each device separately, with results that depend on the number of devices.
    """

    temperature: float
    block_size: int | None = None
    group_weights: tuple[float, ...] | None = None
    exchange: str = "gather"


@jax.named_scope("loss")
def awcl_loss(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    *,
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    anchor_groups: Int[Array, " a"] | Int[Array, "a m"],
    contrast_groups: Int[Array, " n"] | Int[Array, "n m"],
    temperature: float,
    block_size: int | None = None,
    group_weights: Sequence[float] | None = None,
) -> Float[Array, " a"]:
    r"""Compute the anatomy-aware contrastive loss of every anchor.

    For anchor i with positives A(i), the other embeddings of its group, and temperature t:

        L(i) = -1/|A(i)| sum_{a in A(i)} log( exp(z_i.z_a / t) / sum_{k != i} exp(z_i.z_k / t) )

    which is L_A of Fu et al. (2022) where the group is an anatomy, L_C where it is one frame, and L_out of Khosla et
    al. (2020, Eq. 2). This holds for each anchor: an unlabelled frame in a batch of labelled ones keeps its own other
    view as its only positive. No factor, such as t/0.07, scales the loss.

    With several groups c = 1..m an embedding, A_c(i) are the other embeddings that are in the c-th group of i, and

        L(i) = sum_c w_c L_c(i) / sum_c w_c,   L_c(i) = -1/|A_c(i)| sum_{a in A_c(i)} log( ... as above ... )

    over the groups that i has. All share the denominator, so one pass over the similarities serves them. With the
    groups (fine, coarse) this is the weighted sum of the two losses; with the structures that a frame shows it treats
    each structure as a label of its own (as MulSupCon, Zhang & Wu 2024).

    Example (two views of one device's batch, as rows 0..b-1 and b..2b-1):

        ids, groups = jnp.arange(2 * b), jnp.tile(groups_from_labels(labels, rows), 2)
        loss = awcl_loss(z, z, anchor_ids=ids, contrast_ids=ids, anchor_groups=groups, contrast_groups=groups,
                         temperature=0.1).mean()

    Called outside `jit`, it warns of anchors without a positive and refuses rows without unit length; under
    `jax.experimental.checkify` the latter is checked within `jit`, too.

    Args:
      anchors: unit embeddings z_i of the anchors; on several devices, this device's share.
      contrast: unit embeddings z_k to compare with; on several devices, the gathered rows, including the anchors.
      anchor_ids: which embedding each anchor is; contrast rows with the same id are the anchor itself and left out.
      contrast_ids: likewise for the contrast rows. Rows of one id have the same groups. Rows with id ABSENT do not
        exist, as in a queue that is not full: they are left out for all, have no loss and may have any finite length.
      anchor_groups: group of each anchor; or m distinct groups, ABSENT where it has fewer.
      contrast_groups: likewise for each contrast row.
      temperature: t, at least LEAST_TEMPERATURE.
      block_size: number of anchors whose similarities are in memory at a time, forward and backward; by default all of
        them if the matrix [a, n] has up to 16 MiB, else 256. It need not divide a, and does not affect the result.
        If `contrast` and `contrast_ids` are the same objects as `anchors` and `anchor_ids`, each block serves the rows
        of both its sides, in half the time.
      group_weights: w_c, one for each of the m groups, finite and at least 0, not all 0; equal by default.

    Returns:
      Loss of each anchor [a] in float32, whatever the embeddings' type; 0 where an anchor has no positive.

    Raises:
      InputError: the temperature, the block size or a weight is out of range, the shapes do not match, or (outside
        `jit`) rows do not have unit length.

    References:
      Fu et al., Anatomy-Aware Contrastive Representation Learning for Fetal Ultrasound, ECCV workshops 2022.
      Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.
      Zhang and Wu, Multi-Label Supervised Contrastive Learning, AAAI 2024.
    """
    _check_settings(temperature, block_size)
    anchor_groups, contrast_groups = as_columns(anchor_groups), as_columns(contrast_groups)
    _check_lengths("anchors", anchors, anchor_ids, anchor_groups)
    _check_lengths("contrast", contrast, contrast_ids, contrast_groups)
    weights = group_weights_of(group_weights, anchor_groups, contrast_groups)
    for name, rows, ids in (("anchors", anchors, anchor_ids), ("contrast", contrast, contrast_ids)):
        _check_unit(name, rows, ids)
    total, count = group_similarity(
        anchors,
        contrast,
        anchor_ids=anchor_ids,
        contrast_ids=contrast_ids,
        anchor_groups=anchor_groups,
        contrast_groups=contrast_groups,
    )
    _warn_of_lone_anchors(count, anchor_ids)
    log_denominator = log_denominators(
        anchors,
        contrast,
        anchor_ids=anchor_ids,
        contrast_ids=contrast_ids,
        temperature=temperature,
        block_size=choose_block_size(block_size, anchors.shape[0], contrast.shape[0]),
    )
    return combine(log_denominator, total, count, groups=anchor_groups, group_weights=weights, temperature=temperature)


def combine(
    log_denominator: Float[Array, " a"],
    total: Float[Array, "a m"],
    count: Int[Array, "a m"],
    *,
    groups: Int[Array, "a m"],
    group_weights: Float[Array, " m"],
    temperature: float,
) -> Float[Array, " a"]:
    """Combine L(i) from log sum_k exp(z_i.z_k / t) and the sum and number of the similarities to each group."""
    # An anchor without other rows has the denominator log 0: `where` on both sides keeps its gradient finite.
    log_denominator = jnp.where(count.any(axis=1), log_denominator, 0.0)[:, None]
    of_group = jnp.where(count > 0, log_denominator - total / jnp.maximum(count, 1) / temperature, 0.0)
    weights = jnp.where(groups != ABSENT, group_weights, 0.0)
    return (weights * of_group).sum(axis=1) / jnp.maximum(weights.sum(axis=1), jnp.finfo(jnp.float32).tiny)


def groups_from_labels(
    labels: Int[Array, " b"] | Int[Array, "b m"], rows: Int[Array, " b"]
) -> Int[Array, " b"] | Int[Array, "b m"]:
    """Return the group of each frame: its label, or a unique negative group if it has none.

    Args:
      labels: anatomy (or scan) of each frame, UNLABELLED (-1) where there is none; with m columns (fine and coarse
        anatomy), each falls back separately, and no label is in two columns.
      rows: the frame's row in the global batch, from 0; distinct over all devices.

    Returns:
      groups, as `labels`; in column c of m, -1 - (m row + c) where there is no label.
    """
    columns = as_columns(labels)
    m = columns.shape[1]
    own = -1 - (m * rows[:, None] + jnp.arange(m, dtype=rows.dtype)[None, :])
    return jnp.where(columns == UNLABELLED, own, columns).reshape(labels.shape)


def groups_from_label_sets(labels: Int[Array, "b m"], rows: Int[Array, " b"]) -> Int[Array, "b m"]:
    """Return the groups of frames with up to m structures: the labels, or a unique negative group if there is none.

    Args:
      labels: the structures of each frame, distinct, filled up with UNLABELLED (-1).
      rows: the frame's row in the global batch, from 0; distinct over all devices.

    Returns:
      groups [b, m], filled up with ABSENT; a frame without any label has -1 - row in the first column.
    """
    groups = jnp.where(labels == UNLABELLED, ABSENT, labels)
    own = jnp.where((labels == UNLABELLED).all(axis=1), -1 - rows, groups[:, 0])
    return groups.at[:, 0].set(own)


def choose_block_size(block_size: int | None, anchors: int, contrast: int) -> int:
    """Return `block_size` of `awcl_loss`, or its default."""
    if block_size is None and anchors * contrast * 4 > _DENSE_BYTES:
        block_size = _BLOCK
    return min(block_size or anchors, anchors)


def _check_settings(temperature: float, block_size: int | None) -> None:
    if not LEAST_TEMPERATURE <= temperature < math.inf:
        raise InputError(f"The temperature must be at least {LEAST_TEMPERATURE:g} and finite; got {temperature}.")
    if block_size is not None and block_size < 1:
        raise InputError(f"block_size must be at least 1 anchor; got {block_size}.")


def as_columns(groups: Array) -> Array:
    """Return groups [n, m]; those of one grouping, [n], as a column [n, 1]."""
    return groups[:, None] if groups.ndim == 1 else groups


def _check_lengths(name: str, rows: Array, ids: Array, groups: Array) -> None:
    if not len(rows) == len(ids) == len(groups):
        raise InputError(
            f"Each row of {name} must have one id and one entry of groups; got {len(rows)} rows, {len(ids)} ids and "
            f"{len(groups)} entries of groups."
        )


def group_weights_of(group_weights: Sequence[float] | None, *groups: Array) -> Float[Array, " m"]:
    """Return the weight of each of the m groupings, 1 if none are given.

    Args:
      group_weights: m finite numbers of at least 0, not all 0.
      groups: those of the anchors and of the contrast rows, [n, m] each.

    Raises:
      InputError: the numbers of groupings differ, or a weight is below 0 or not finite, or all are 0.
    """
    (m, other) = (columns.shape[1] for columns in groups)
    weights = (1.0,) * m if group_weights is None else tuple(group_weights)
    if not m == other == len(weights):
        raise InputError(
            f"Anchors, contrast rows and group_weights must have the same number of groups; got {m}, {other} and "
            f"{len(weights)}."
        )
    # As the loss computes with them: what float32 rounds to 0 counts as 0, what it has no number for as infinite.
    with np.errstate(over="ignore"):
        single = np.asarray(weights, np.float32)
    if not (np.isfinite(single).all() and (single >= 0).all() and np.finfo(np.float32).tiny <= single.sum() < math.inf):
        raise InputError(f"group_weights must be finite, >= 0 and not all 0; got {weights}.")
    return jnp.asarray(single)


def _check_unit(name: str, rows: Array, ids: Array) -> None:
    lengths = (rows.astype(jnp.float32) ** 2).sum(axis=1)
    unit = (jnp.abs(lengths - 1) < _UNIT_TOLERANCE) | (ids == ABSENT)
    if isinstance(unit, jax.core.Tracer):
        checkify.debug_check(unit.all(), f"awcl_loss needs rows of unit length; some rows of {name} are not")
    elif not unit.all():
        wrong = int(np.flatnonzero(~np.asarray(unit))[0])
        raise InputError(
            f"awcl_loss needs rows of unit length; row {wrong} of {name} has length {float(lengths[wrong]) ** 0.5:.3g}."
        )


def _warn_of_lone_anchors(count: Int[Array, "a m"], ids: Int[Array, " a"]) -> None:
    if isinstance(count, jax.core.Tracer):
        return
    present = ids != ABSENT
    if lone := int((present & ~count.any(axis=1)).sum()):
        warnings.warn(f"{lone} of {int(present.sum())} anchors have no positive; their loss is 0.", stacklevel=3)
