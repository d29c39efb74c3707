"""The log-denominator of the contrastive loss without its [a, n] matrix, forward and backward.

    D(i) = log sum_{k != i} exp(z_i.z_k / t)

A block of similarities is computed, used and dropped; the backward pass recomputes it from the stored D, as in
FlashAttention (Dao et al. 2022, Sec. 3.1). Memory besides inputs and results is one block.

If anchors and contrast rows are the same array, similarities are symmetric, and each block serves the rows of both its
sides: half the products, forward and backward.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from awcl_jax.runtime import sharding

ABSENT = np.iinfo(np.int32).min
"""As an id: the row does not exist, for any anchor. As a group: there is none."""

# exp((z_i.z_k - 1) / t) spans exp(-2 / t) to 1. Down to this temperature float32 can hold all of it, and 1 / t
# replaces the row's greatest similarity, which is unknown within a block.
_LEAST_FIXED_SHIFT = 0.025

_HIGHEST = jax.lax.Precision.HIGHEST


def log_denominators(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    *,
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    temperature: float,
    block_size: int,
) -> Float[Array, " a"]:
    """Compute D(i) of every anchor, in float32; -inf, with gradient 0, where there is no other row.

    Args:
      anchors: unit rows.
      contrast: unit rows. If this is the same object as `anchors`, and the ids likewise, symmetry is used.
      anchor_ids: contrast rows with the same id are the anchor itself and left out.
      contrast_ids: likewise; rows of id ABSENT are left out for all.
      temperature: t, above 0.
      block_size: anchors whose similarities are in memory at a time; the last block is padded.
    """
    if contrast is anchors and contrast_ids is anchor_ids and temperature >= _LEAST_FIXED_SHIFT:
        return _symmetric(anchors, anchor_ids, temperature, block_size)
    arrays = sharding.varying_alike(anchors, contrast, anchor_ids, contrast_ids)
    return _rectangular(*arrays, temperature, block_size)


# Anchors against other rows: a block of anchors with all of them. ----------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _rectangular(
    anchors: Array, contrast: Array, anchor_ids: Array, contrast_ids: Array, temperature: float, block_size: int
) -> Array:
    def of_block(block: tuple[Array, Array]) -> Array:
        return jax.nn.logsumexp(_logits(*block, contrast, contrast_ids, temperature), axis=1)

    blocks = _split(anchors, block_size), _split(anchor_ids, block_size)
    return jax.lax.map(of_block, blocks).reshape(-1)[: anchors.shape[0]]


def _rectangular_forward(
    anchors: Array, contrast: Array, anchor_ids: Array, contrast_ids: Array, temperature: float, block_size: int
) -> tuple[Array, tuple[Array, ...]]:
    denominators = _rectangular(anchors, contrast, anchor_ids, contrast_ids, temperature, block_size)
    return denominators, (anchors, contrast, anchor_ids, contrast_ids, denominators)


def _rectangular_backward(
    temperature: float, block_size: int, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, None, None]:
    anchors, contrast, *ids_and_denominators = kept
    to_anchors, to_contrast = denominator_gradients(
        gradient, anchors, contrast, *ids_and_denominators, temperature=temperature, block_size=block_size
    )
    return to_anchors.astype(anchors.dtype), to_contrast.astype(contrast.dtype), None, None


_rectangular.defvjp(_rectangular_forward, _rectangular_backward)


def denominator_gradients(
    gradient: Float[Array, " a"],
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    denominators: Float[Array, " a"],
    *,
    temperature: float,
    block_size: int,
) -> tuple[Float[Array, "a d"], Float[Array, "n d"]]:
    """Turn the gradient with respect to D(i) into those of the anchors and of these contrast rows, in float32.

        dD(i)/dz_i = 1/t sum_k P(i, k) z_k,   dD(i)/dz_k = 1/t P(i, k) z_i,   P(i, k) = exp(z_i.z_k / t - D(i))

    Args:
      gradient: of the result, for each anchor.
      anchors, contrast, anchor_ids, contrast_ids, temperature, block_size: as in `log_denominators`.
      denominators: D(i), over these contrast rows or more.

    Returns:
      (gradient of the anchors, gradient of the contrast rows)
    """
    finite = jnp.isfinite(denominators)
    weights = jnp.where(finite, gradient, 0.0) / temperature
    denominators = jnp.where(finite, denominators, 0.0)

    def of_block(total: Array, block: tuple[Array, ...]) -> tuple[Array, Array]:
        rows, ids, weight, denominator = block
        logits = _logits(rows, ids, contrast, contrast_ids, temperature)
        p = weight[:, None] * jnp.exp(logits - denominator[:, None])
        return total + _product(p.T, rows), _product(p, contrast)

    blocks = tuple(_split(array, block_size) for array in (anchors, anchor_ids, weights, denominators))
    total, to_anchors = jax.lax.scan(of_block, _zeros(contrast), blocks)
    return to_anchors.reshape(-1, anchors.shape[1])[: anchors.shape[0]], total


# Rows against themselves: the blocks on and above the diagonal. -------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _symmetric(rows: Array, ids: Array, temperature: float, block_size: int) -> Array:
    return _symmetric_forward(rows, ids, temperature, block_size)[0]


def _symmetric_forward(
    rows: Array, ids: Array, temperature: float, block_size: int
) -> tuple[Array, tuple[Array, Array, Array]]:
    blocks, id_blocks = _split(rows, block_size), _split(ids, block_size)
    valid = _split(jnp.ones(rows.shape[0], bool), block_size)

    def of_pair(sums: Array, pair: Array) -> tuple[Array, None]:
        i, j = pair
        e = _exponentials(blocks[i], id_blocks[i], valid[i], blocks[j], id_blocks[j], valid[j], temperature)
        sums = sums.at[i].add(e.sum(axis=1))
        return sums.at[j].add(jnp.where(i == j, 0.0, e.sum(axis=0))), None

    sums, _ = jax.lax.scan(of_pair, _zeros(blocks[..., 0]), _pairs(blocks.shape[0]))
    denominators = jnp.log(sums.reshape(-1)[: rows.shape[0]]) + 1 / temperature
    return denominators, (rows, ids, denominators)


def _symmetric_backward(
    temperature: float, block_size: int, kept: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, None]:
    # Row i meets row j as an anchor and as a contrast row: the weight of z_j in the gradient of z_i is
    # (g_i P(i, j) + g_j P(j, i)) / t, where P(i, j) = e(i, j) r_i, r_i = exp(1/t - D(i)).
    rows, ids, denominators = kept
    r = jnp.where(jnp.isfinite(denominators), gradient * jnp.exp(1 / temperature - denominators), 0.0) / temperature
    blocks, id_blocks, r_blocks = (_split(array, block_size) for array in (rows, ids, r))
    valid = _split(jnp.ones(rows.shape[0], bool), block_size)

    def of_pair(total: Array, pair: Array) -> tuple[Array, None]:
        i, j = pair
        e = _exponentials(blocks[i], id_blocks[i], valid[i], blocks[j], id_blocks[j], valid[j], temperature)
        weights = e * (r_blocks[i][:, None] + r_blocks[j][None, :])
        total = total.at[i].add(_product(weights, blocks[j]))
        return total.at[j].add(jnp.where(i == j, 0.0, _product(weights.T, blocks[i]))), None

    total, _ = jax.lax.scan(of_pair, _zeros(blocks), _pairs(blocks.shape[0]))
    return total.reshape(-1, rows.shape[1])[: rows.shape[0]].astype(rows.dtype), None


_symmetric.defvjp(_symmetric_forward, _symmetric_backward)


def _exponentials(
    rows: Array, ids: Array, valid: Array, others: Array, other_ids: Array, other_valid: Array, temperature: float
) -> Array:
    """Return exp((z_i.z_j - 1) / t) of two blocks; 0 where i = j and where either is padding."""
    counted = ~_left_out(ids, other_ids) & valid[:, None] & other_valid[None, :]
    return jnp.where(counted, jnp.exp((_product(rows, others.T) - 1) / temperature), 0.0)


def _pairs(blocks: int) -> Int[Array, "pairs 2"]:
    return jnp.asarray(np.stack(np.triu_indices(blocks), axis=1))


# Common to both. ------------------------------------------------------------------------------------------------------


def _logits(rows: Array, ids: Array, contrast: Array, contrast_ids: Array, temperature: float) -> Array:
    return jnp.where(_left_out(ids, contrast_ids), -jnp.inf, _product(rows, contrast.T) / temperature)


def _left_out(ids: Array, contrast_ids: Array) -> Bool[Array, "a n"]:
    ids, contrast_ids = ids[:, None], contrast_ids[None, :]
    return (ids == contrast_ids) | (ids == ABSENT) | (contrast_ids == ABSENT)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST, preferred_element_type=jnp.float32)


def _split(array: Array, block_size: int) -> Array:
    """Split [a, ...] into [blocks, block_size, ...], the last block filled up with zeros."""
    padding = -array.shape[0] % block_size
    padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(-1, block_size, *array.shape[1:])


def _zeros(like: Array) -> Float[Array, "..."]:
    """Return zeros in float32 that vary over devices wherever `like` does, as the carry of a scan must."""
    return jnp.zeros(like.shape, jnp.float32) + 0 * like.astype(jnp.float32)
