"""The loss if no device can hold all rows: they travel around the ring of devices instead of being gathered.

Every device compares its anchors with the visiting rows and passes these on, until all rows are home again. A device
holds its own rows and one visiting share, so memory does not grow with the number of devices. The backward pass makes
another round: the gradient of the visiting rows travels home with them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from awcl_jax.losses.awcl import as_columns, choose_block_size, combine, group_weights_of
from awcl_jax.losses.blockwise import denominator_gradients, log_denominators
from awcl_jax.losses.positives import group_similarity
from awcl_jax.runtime import sharding

EXCHANGES = ("gather", "ring")
"""How devices share embeddings."""


@jax.named_scope("loss")
def ring_awcl_loss(
    rows: Float[Array, "b d"],
    *,
    ids: Int[Array, " b"],
    groups: Int[Array, " b"] | Int[Array, "b m"],
    temperature: float,
    block_size: int | None = None,
    group_weights: tuple[float, ...] | None = None,
) -> Float[Array, " b"]:
    """Compute `awcl_loss` of this device's rows against the rows of all devices, inside a mapped step.

    Args:
      rows: this device's unit embeddings.
      ids: of the embeddings, distinct over all devices.
      groups: of the embeddings, as in `awcl_loss`.
      temperature: above 0.
      block_size: anchors whose similarities with the visiting rows are in memory at a time, as in `awcl_loss`.
      group_weights: as in `awcl_loss`.

    Returns:
      Loss of each row [b], equal to the loss with gathered rows up to the order of summation.
    """
    columns = as_columns(groups)
    weights = group_weights_of(group_weights, columns, columns)
    block_size = choose_block_size(block_size, len(rows), len(rows))
    log_denominator, total, count = _around(rows, ids, columns, temperature, block_size)
    return combine(log_denominator, total, count, groups=columns, group_weights=weights, temperature=temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _around(
    rows: Array, ids: Array, groups: Array, temperature: float, block_size: int
) -> tuple[Float[Array, " b"], Float[Array, "b m"], Int[Array, "b m"]]:
    """Return D(i), and sum and number of the similarities to each group, over the rows of all devices."""

    def meet(carry: Any, _: None) -> tuple[Any, None]:
        visitors, visitor_ids, visitor_groups, log_denominator, total, count = carry
        # Sent before they are used, so that the transfer overlaps with the computation.
        onward = sharding.pass_on((visitors, visitor_ids, visitor_groups))
        here = log_denominators(
            rows,
            visitors,
            anchor_ids=ids,
            contrast_ids=visitor_ids,
            temperature=temperature,
            block_size=block_size,
        )
        similarity, number = group_similarity(
            rows,
            visitors,
            anchor_ids=ids,
            contrast_ids=visitor_ids,
            anchor_groups=groups,
            contrast_groups=visitor_groups,
        )
        return (*onward, jnp.logaddexp(log_denominator, here), total + similarity, count + number), None

    zeros = _zeros(groups)
    start = (rows, ids, groups, zeros[:, 0] - jnp.inf, zeros, zeros.astype(ids.dtype))
    (*_, log_denominator, total, count), _ = jax.lax.scan(meet, start, length=sharding.device_count())
    return log_denominator, total, count


def _forward(rows: Array, ids: Array, groups: Array, temperature: float, block_size: int) -> tuple:
    results = _around(rows, ids, groups, temperature, block_size)
    return results, (rows, ids, groups, results[0])


def _backward(temperature: float, block_size: int, kept: tuple[Array, ...], gradients: tuple) -> tuple:
    rows, ids, groups, log_denominator = kept
    to_denominator, to_total, _ = gradients

    def meet(carry: Any, _: None) -> tuple[Any, None]:
        visitors, visitor_ids, visitor_groups, to_visitors, to_rows = carry
        onward = sharding.pass_on((visitors, visitor_ids, visitor_groups))
        by_denominator = denominator_gradients(
            to_denominator,
            rows,
            visitors,
            ids,
            visitor_ids,
            log_denominator,
            temperature=temperature,
            block_size=block_size,
        )

        def similarity(rows: Array, visitors: Array) -> Array:
            return group_similarity(
                rows,
                visitors,
                anchor_ids=ids,
                contrast_ids=visitor_ids,
                anchor_groups=groups,
                contrast_groups=visitor_groups,
            )[0]

        by_total = jax.vjp(similarity, rows.astype(jnp.float32), visitors.astype(jnp.float32))[1](to_total)
        to_visitors = sharding.pass_on(to_visitors + by_denominator[1] + by_total[1])
        return (*onward, to_visitors, to_rows + by_denominator[0] + by_total[0]), None

    start = (rows, ids, groups, _zeros(rows), _zeros(rows))
    (*_, came_home, to_rows), _ = jax.lax.scan(meet, start, length=sharding.device_count())
    return (to_rows + came_home).astype(rows.dtype), None, None


_around.defvjp(_forward, _backward)


def _zeros(like: Array) -> Float[Array, "..."]:
    """Return zeros that vary over devices, as the carry of a scan must."""
    return 0 * like.astype(jnp.float32)
