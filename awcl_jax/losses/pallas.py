"""The log-denominator of the contrastive loss as a Pallas kernel, forward and backward.

    D(i) = log sum_{k != i} exp(z_i.z_k / t)

One program compares one block of anchors with every block of contrast rows and keeps, for each anchor, the greatest
logit m so far and the sum l of exp(logit - m), as in FlashAttention (Dao et al. 2022, Algorithm 1, without the
values): D = m + log l at any temperature. The backward pass recomputes the blocks from the stored D.

The same kernel bodies are lowered for GPU by Triton and for TPU by Mosaic, and interpreted on a CPU, whose times do not
carry over. So far they have only been run interpreted: no accelerator has run or timed them. They lower to Triton's IR
for CUDA and ROCm, which is not compiled further here, and compile ahead of time for TPU v4, v5e, v5p and v6e. On TPU
every program holds all contrast rows in vector memory: 32,768 rows of 128 float32 numbers are too many for a v5e,
16,384 are not.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from awcl_jax.losses.blockwise import ABSENT
from awcl_jax.runtime import sharding
from awcl_jax.runtime.errors import InputError

_LEAST_EDGE = 16  # smallest block edge for tensor cores
# The initial greatest logit: finite, because inf - inf is not a number.
_NO_LOGIT = -1e30


def log_denominators(
    anchors: Float[Array, "a d"],
    contrast: Float[Array, "n d"],
    *,
    anchor_ids: Int[Array, " a"],
    contrast_ids: Int[Array, " n"],
    temperature: float,
    anchor_block: int = 64,
    contrast_block: int = 64,
) -> Float[Array, " a"]:
    """Compute D(i) of every anchor, in float32; -inf, with gradient 0, where there is no other row.

    The results are those of `blockwise.log_denominators`. Products are computed in float32 (on Triton `HIGHEST` is IEEE
    arithmetic, without TF32), or, where all rows are bfloat16, in bfloat16 with sums in float32: exact for the logits,
    while the gradient uses the softmax's weights rounded to bfloat16, as FlashAttention does.

    Args:
      anchors: unit rows.
      contrast: unit rows. If this is the same object as `anchors`, and the ids likewise, one backward kernel
        computes the gradient of both.
      anchor_ids: contrast rows with the same id are the anchor itself and left out.
      contrast_ids: likewise; rows of id ABSENT are left out for all.
      temperature: t, above 0.
      anchor_block: anchors in a block, a power of 2 of at least 16; it need not divide the number of anchors.
      contrast_block: contrast rows in a block, likewise.

    Raises:
      InputError: a block size is not a power of 2, or below 16.

    References:
      Dao et al., FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness, NeurIPS 2022.
    """
    for name, block in (("anchor_block", anchor_block), ("contrast_block", contrast_block)):
        if block < _LEAST_EDGE or block & (block - 1):
            raise InputError(f"{name} must be a power of 2 and at least {_LEAST_EDGE}; got {block}.")
    blocks = _block_of(anchors, anchor_block), _block_of(contrast, contrast_block)
    symmetric = contrast is anchors and contrast_ids is anchor_ids
    dtype = jnp.bfloat16 if anchors.dtype == contrast.dtype == jnp.bfloat16 else jnp.float32
    arrays = sharding.varying_alike(anchors.astype(dtype), contrast.astype(dtype), anchor_ids, contrast_ids)
    return _log_denominators(*arrays, temperature, blocks, symmetric)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _log_denominators(
    anchors: Array,
    contrast: Array,
    anchor_ids: Array,
    contrast_ids: Array,
    temperature: float,
    blocks: tuple[int, int],
    symmetric: bool,
) -> Array:
    del symmetric
    kernel = functools.partial(_denominators_kernel, scale=1 / temperature, count=contrast.shape[0])
    rows = _columns(blocks[0], anchors, anchor_ids)
    denominators = _past_all(kernel, rows, _lines(blocks[1], contrast, contrast_ids), width=1)
    return denominators[: anchors.shape[0], 0]


def _forward(
    anchors: Array,
    contrast: Array,
    anchor_ids: Array,
    contrast_ids: Array,
    temperature: float,
    blocks: tuple[int, int],
    symmetric: bool,
) -> tuple[Array, tuple[Array, ...]]:
    denominators = _log_denominators(anchors, contrast, anchor_ids, contrast_ids, temperature, blocks, symmetric)
    return denominators, (anchors, contrast, anchor_ids, contrast_ids, denominators)


def _backward(
    temperature: float, blocks: tuple[int, int], symmetric: bool, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array | None, None, None]:
    # dD(i)/dz_i = 1/t sum_k P(i, k) z_k and dD(i)/dz_k = 1/t P(i, k) z_i, with P(i, k) = exp(z_i.z_k / t - D(i)).
    anchors, contrast, anchor_ids, contrast_ids, denominators = kept
    finite = jnp.isfinite(denominators)
    weights = jnp.where(finite, gradient, 0.0) / temperature
    weighing = weights, jnp.where(finite, denominators, 0.0)

    def gradient_of(rows: list[Array], others: list[Array], like: Array, count: int) -> Array:
        kernel = functools.partial(_gradient_kernel, scale=1 / temperature, count=count)
        total = _past_all(kernel, rows, others, width=rows[0].shape[-1])
        return total[: like.shape[0], : like.shape[1]].astype(like.dtype)

    a, n = anchors.shape[0], contrast.shape[0]
    anchor_block, contrast_block = blocks
    weighed = _columns(anchor_block, anchors, anchor_ids, *weighing)
    if symmetric:
        return (
            gradient_of(weighed, _lines(contrast_block, anchors, anchor_ids, *weighing), anchors, a),
            None,
            None,
            None,
        )
    to_anchors = gradient_of(weighed, _lines(contrast_block, contrast, contrast_ids), anchors, n)
    rows = _columns(contrast_block, contrast, contrast_ids)
    to_contrast = gradient_of(rows, _lines(anchor_block, anchors, anchor_ids, *weighing), contrast, a)
    return to_anchors, to_contrast, None, None


_log_denominators.defvjp(_forward, _backward)


# The kernels: a block of rows against all blocks of others. -----------------------------------------------------------
# Numbers of the rows are a column [b, 1], those of the others a line [1, c], so that nothing is transposed.


def _denominators_kernel(row_refs: Any, other_refs: Any, out_ref: Any, *, scale: float, count: int) -> None:
    z, ids = (ref[...] for ref in row_refs)
    others_ref, other_ids_ref = other_refs

    def take(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        top, total = carry
        logits = _logits(z, ids, others_ref[k], other_ids_ref[k], k, scale, count)
        higher = jnp.maximum(top, logits.max(axis=1, keepdims=True))
        added = jnp.exp(logits - higher).sum(axis=1, keepdims=True)
        return higher, total * jnp.exp(top - higher) + added

    start = jnp.full(out_ref.shape, _NO_LOGIT, jnp.float32), jnp.zeros(out_ref.shape, jnp.float32)
    top, total = jax.lax.fori_loop(0, others_ref.shape[0], take, start)
    out_ref[...] = top + jnp.log(total)


def _gradient_kernel(row_refs: Any, other_refs: Any, out_ref: Any, *, scale: float, count: int) -> None:
    """Compute sum_k W(i, k) z_k.

    W(i, k) is g_i P(i, k) if the rows have weights g and D, g_k P(k, i) if the others do, and the sum if both do.
    """
    z, ids, *own = (ref[...] for ref in row_refs)
    others_ref, other_ids_ref, *weighing_refs = other_refs

    def take(k: Array, total: Array) -> Array:
        others = others_ref[k]
        logits = _logits(z, ids, others, other_ids_ref[k], k, scale, count)
        weights = jnp.zeros_like(logits)
        for weighing in (own, [ref[k] for ref in weighing_refs]):
            if weighing:
                g, denominators = weighing
                weights += g * jnp.exp(logits - denominators)
        return total + _product(weights.astype(others.dtype), others, contracted=0)

    out_ref[...] = jax.lax.fori_loop(0, others_ref.shape[0], take, jnp.zeros(out_ref.shape, jnp.float32))


def _logits(z: Array, ids: Array, others: Array, other_ids: Array, k: Array, scale: float, count: int) -> Array:
    """Return the logits of rows [b, d] with block k of the others [c, d]; -inf at the own row, absent ones, padding."""
    at = k * others.shape[0] + jax.lax.broadcasted_iota(jnp.int32, other_ids.shape, 1)
    counted = (ids != other_ids) & (ids != ABSENT) & (other_ids != ABSENT) & (at < count)
    return jnp.where(counted, _product(z, others, contracted=1) * scale, -jnp.inf)


def _product(a: Array, b: Array, *, contracted: int) -> Array:
    # Mosaic accepts HIGHEST for float32 only.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = ((1,), (contracted,)), ((), ())
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


# Around them. ---------------------------------------------------------------------------------------------------------


def _past_all(kernel: Callable[..., None], rows: list[Array], others: list[Array], *, width: int) -> Array:
    """Run a program for each block of rows [blocks, b, ...] with all of the others; return [blocks * b, width]."""
    blocks, b, _ = rows[0].shape
    varying = jax.typeof(rows[0]).manual_axis_type
    shape = jax.ShapeDtypeStruct((blocks, b, width), jnp.float32, manual_axis_type=varying)

    def run(rows: list[Array], others: list[Array], **how: Any) -> Array:
        one = [pl.BlockSpec((None, *array.shape[1:]), lambda i: (i, 0, 0)) for array in rows]
        whole = [pl.BlockSpec(array.shape, lambda i: (0, 0, 0)) for array in others]
        out = pl.BlockSpec((None, b, width), lambda i: (i, 0, 0))
        call = pl.pallas_call(kernel, grid=(blocks,), in_specs=[one, whole], out_specs=out, out_shape=shape, **how)
        return call(rows, others)

    def interpret(rows: list[Array], others: list[Array]) -> Array:
        if not varying.varying:
            return run(rows, others, interpret=True)
        # The interpreter fails on types that vary over mesh axes; in a map that does not check them, a sum has none.
        unchecked = jax.shard_map(
            lambda *arrays: run(*jax.tree.map(lambda x: x + 0, arrays), interpret=True),
            in_specs=PartitionSpec(),
            out_specs=PartitionSpec(),
            check_vma=False,
        )
        return jax.lax.pcast(unchecked(rows, others), tuple(varying.varying), to="varying")

    # The platform is fixed when the program is lowered, and only its branch is lowered.
    on_gpu = functools.partial(run, compiler_params=triton.CompilerParams(num_warps=4, num_stages=2))
    return jax.lax.platform_dependent(rows, others, cpu=interpret, tpu=run, default=on_gpu).reshape(-1, width)


def _block_of(rows: Array, block: int) -> int:
    """Return the block size, or the smallest that holds all rows."""
    return min(block, max(_LEAST_EDGE, pl.next_power_of_2(rows.shape[0])))


def _columns(block: int, z: Array, *vectors: Array) -> list[Array]:
    """Split rows [a, d] into [blocks, block, d'], vectors [a] into [blocks, block, 1]."""
    return [_split(_widened(z), block), *(_split(vector[:, None], block) for vector in vectors)]


def _lines(block: int, z: Array, *vectors: Array) -> list[Array]:
    """Split rows [n, d] into [blocks, block, d'], vectors [n] into [blocks, 1, block]."""
    return [_split(_widened(z), block), *(_split(vector[:, None], block).swapaxes(1, 2) for vector in vectors)]


def _widened(z: Array) -> Array:
    """Pad the embedding with zeros up to a power of 2; they change no product."""
    d = z.shape[1]
    return jnp.pad(z, ((0, 0), (0, max(_LEAST_EDGE, pl.next_power_of_2(d)) - d)))


def _split(array: Array, block: int) -> Array:
    padded = jnp.pad(array, ((0, -array.shape[0] % block), (0, 0)))
    return padded.reshape(-1, block, array.shape[1])
