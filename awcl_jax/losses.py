"""The anatomy-aware contrastive loss, without collectives.

Every embedding belongs to a *group*, and embeddings of one group attract each other. What the groups are is the method:

    AWCL        the frame's anatomy (fine or coarse); a group of its own where the frame has no label
    scan        the frame's scan (patient metadata)
    SimCLR      a group per frame, so that only its own second view is positive
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from awcl_jax.anatomy import UNLABELLED
from awcl_jax.blockwise import log_denominators
from awcl_jax.errors import InputError

_DENSE_BYTES = 2**24
_BLOCK = 256


def awcl_loss(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    *,
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    anchor_groups: Int[Array, " a"],
    contrast_groups: Int[Array, " n"],
    temperature: float,
    block_size: int | None = None,
) -> Float[Array, " a"]:
    r"""Anatomy-aware contrastive loss of every anchor.

    For anchor i with positives A(i), the other embeddings of its group, and temperature t:

        L(i) = -1/|A(i)| sum_{a in A(i)} log( exp(z_i.z_a / t) / sum_{k != i} exp(z_i.z_k / t) )

    which is L_A of Fu et al. (2022) where the group is an anatomy, L_C where it is one frame, and L_out of Khosla et
    al. (2020, Eq. 2). The choice falls anchor by anchor: an unlabelled frame in a batch of labelled ones keeps its own
    other view as only positive. Neither the factor t/0.07 nor any other scales the loss.

    Example (two views of one device's batch, as rows 0..b-1 and b..2b-1):

        ids, groups = jnp.arange(2 * b), jnp.tile(groups_from_labels(labels, rows), 2)
        loss = awcl_loss(z, z, anchor_ids=ids, contrast_ids=ids, anchor_groups=groups, contrast_groups=groups,
                         temperature=0.1).mean()

    Args:
      anchors: unit embeddings z_i of the anchors; on several devices this device's share.
      contrast: unit embeddings z_k to compare with; on several devices the gathered rows, the anchors' own among them.
      anchor_ids: which embedding each anchor is; a contrast row of the same id is the anchor itself and left out.
      contrast_ids: likewise for the contrast rows, without repetition.
      anchor_groups: group of each anchor.
      contrast_groups: group of each contrast row.
      temperature: t, above 0.
      block_size: number of anchors whose similarities are held at a time, forward and backward; by default all of them
        where the matrix [a, n] takes up to 16 MiB, else 256. It need not divide a, and the numbers do not depend on it.
        Where `contrast` and `contrast_ids` are the very objects `anchors` and `anchor_ids`, each block serves the rows
        of both its sides, in half the time.

    Returns:
      Loss of each anchor [a] in float32, whatever the embeddings' type; 0 where an anchor has no positive.

    Raises:
      InputError: the temperature or the block size is not positive.

    References:
      Fu et al., Anatomy-Aware Contrastive Representation Learning for Fetal Ultrasound, ECCV workshops 2022.
      Khosla et al., Supervised Contrastive Learning, NeurIPS 2020.
    """
    if not temperature > 0:
        raise InputError(f"The temperature must be above 0; got {temperature}.")
    if block_size is not None and block_size < 1:
        raise InputError(f"block_size counts anchors and must be at least 1; got {block_size}.")
    if block_size is None and anchors.shape[0] * contrast.shape[0] * 4 > _DENSE_BYTES:
        block_size = _BLOCK
    similarity, positives = _positives(anchors, contrast, anchor_ids, contrast_ids, anchor_groups, contrast_groups)
    log_denominator = log_denominators(
        anchors,
        contrast,
        anchor_ids=anchor_ids,
        contrast_ids=contrast_ids,
        temperature=temperature,
        block_size=min(block_size or anchors.shape[0], anchors.shape[0]),
    )
    # An anchor alone in the world has the denominator log 0: `where` on both sides keeps its gradient finite.
    log_denominator = jnp.where(positives > 0, log_denominator, 0.0)
    return jnp.where(positives > 0, log_denominator - similarity / temperature, 0.0)


def _positives(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    anchor_groups: Int[Array, " a"],
    contrast_groups: Int[Array, " n"],
) -> tuple[Float[Array, " a"], Int[Array, " a"]]:
    """Mean of z_i.z_a over A(i), and |A(i)|, without a similarity matrix.

    The sum over a group is one product, z_i . sum of the group's z, less z_i.z_i where the anchor itself is in the sum.
    """
    n = contrast.shape[0]
    rows, contrast_rows = anchors.astype(jnp.float32), contrast.astype(jnp.float32)
    # A group's slot is where its rows begin in the order of groups.
    ordered = jnp.sort(contrast_groups)
    slots = jnp.searchsorted(ordered, contrast_groups)
    sums = jax.ops.segment_sum(contrast_rows, slots, num_segments=n)
    sizes = jax.ops.segment_sum(jnp.ones_like(slots), slots, num_segments=n)
    at = jnp.minimum(jnp.searchsorted(ordered, anchor_groups), n - 1)
    known = ordered[at] == anchor_groups
    order = jnp.argsort(contrast_ids)
    own = order[jnp.minimum(jnp.searchsorted(contrast_ids[order], anchor_ids), n - 1)]
    in_own_group = (contrast_ids[own] == anchor_ids) & (contrast_groups[own] == anchor_groups)
    positives = jnp.where(known, sizes[at], 0) - in_own_group
    total = jnp.where(known, _rows_dot(rows, sums[at]), 0.0) - jnp.where(
        in_own_group, _rows_dot(rows, contrast_rows[own]), 0.0
    )
    return total / jnp.maximum(positives, 1), positives


def _rows_dot(a: Float[Array, "a d"], b: Float[Array, "a d"]) -> Float[Array, " a"]:
    return (a * b).sum(axis=-1)


def groups_from_labels(labels: Int[Array, " b"], rows: Int[Array, " b"]) -> Int[Array, " b"]:
    """Group of each frame: its label, or a negative group of its own where it has none.

    Args:
      labels: anatomy (or scan) of each frame, UNLABELLED (-1) where there is none.
      rows: the frame's row in the global batch, from 0; distinct over all devices.

    Returns:
      groups [b]: the label, or -1 - row.
    """
    return jnp.where(labels == UNLABELLED, -1 - rows, labels)
