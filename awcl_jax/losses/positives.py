"""The positive term of the contrastive loss, without a similarity matrix.

The sum of an anchor's similarities to all rows of a group is one product, with the sum of the group's rows:

    sum_{a in group} z_i.z_a = z_i . sum_{a in group} z_a
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from awcl_jax.losses.blockwise import ABSENT


def group_similarity(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    *,
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    anchor_groups: Int[Array, "a m"],
    contrast_groups: Int[Array, "n m"],
) -> tuple[Float[Array, "a m"], Int[Array, "a m"]]:
    """Return the sum of z_i.z_a over the other rows of each of an anchor's groups, and their number.

    Results for parts of the contrast rows add up.

    Args:
      anchors: rows z_i.
      contrast: rows z_a.
      anchor_ids: contrast rows with the same id are the anchor itself and not counted.
      contrast_ids: likewise; rows of one id have the same groups, rows with id ABSENT do not exist.
      anchor_groups: groups of each anchor, ABSENT where it has fewer than m.
      contrast_groups: groups of each contrast row, distinct except for ABSENT.
    """
    rows, contrast_rows = anchors.astype(jnp.float32), contrast.astype(jnp.float32)
    present = contrast_ids != ABSENT
    groups = jnp.where(present[:, None], contrast_groups, ABSENT)
    m = groups.shape[1]
    sums, sizes, at = _sums(jnp.repeat(contrast_rows, m, axis=0), groups.reshape(-1), anchor_groups)
    own_sums, own_sizes, own_at = _sums(contrast_rows, contrast_ids, anchor_ids)
    # One row represents all of its id, whose groups are the same.
    order = jnp.argsort(contrast_ids)
    own = order[jnp.minimum(jnp.searchsorted(contrast_ids[order], anchor_ids), order.size - 1)]
    in_own = (contrast_ids[own] == anchor_ids)[:, None] & _shared(anchor_groups, groups[own])
    there = (anchor_groups != ABSENT) & (anchor_ids != ABSENT)[:, None]
    similarity = jnp.einsum("id,imd->im", rows, sums[at], precision=jax.lax.Precision.HIGHEST)
    own_similarity = (rows * own_sums[own_at]).sum(axis=1, keepdims=True)
    total = jnp.where(there, similarity - jnp.where(in_own, own_similarity, 0.0), 0.0)
    count = jnp.where(there, sizes[at] - jnp.where(in_own, own_sizes[own_at][:, None], 0), 0)
    return total, count


def _sums(
    rows: Float[Array, "n d"], keys: Int[Array, " n"], wanted: Int[Array, "*w"]
) -> tuple[Float[Array, "n1 d"], Int[Array, " n1"], Int[Array, "*w"]]:
    """Return sums and counts of the rows of each key, and where each wanted key is; the last entry is for no key."""
    ordered = jnp.sort(keys)
    slots = jnp.searchsorted(ordered, keys)  # where the rows of this key begin
    n = keys.size
    sums = jax.ops.segment_sum(rows, slots, num_segments=n + 1)
    sizes = jax.ops.segment_sum(jnp.ones_like(slots), slots, num_segments=n + 1)
    at = jnp.searchsorted(ordered, wanted)
    return sums, sizes, jnp.where(ordered[jnp.minimum(at, n - 1)] == wanted, at, n)


def _shared(groups: Int[Array, "a m"], others: Int[Array, "a m"]) -> Bool[Array, "a m"]:
    """Return which of an anchor's groups are also the other row's."""
    return (groups[:, :, None] == others[:, None, :]).any(axis=-1)
