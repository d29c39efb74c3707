"""Blocks of an encoder, computed for a few pictures at a time on a CPU: their values stay in its caches."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PyTree

from awcl_jax.runtime import sharding

_KEPT = "kept"  # name of the values that a block's gradient does not compute again
_TOKENS = 1024  # or pixels, that a block computes at a time on a CPU, so that they stay in its caches


def kept_for_gradient(x: Array) -> Array:
    """Mark a value that a block's gradient does not compute again."""
    return checkpoint_name(x, _KEPT)


def apply_block(
    block: Any, x: Float[Array, "b ... c"], kept: Float[Array, "b _"] | None, *, remat: bool
) -> Float[Array, "b ... c"]:
    """Return a block's output; on a CPU it computes a few pictures at a time.

    For its gradient it keeps what `kept_for_gradient` marks, and with `remat` only its input: the rest is computed
    again. On a CPU XLA does so only in the body of a loop. Elsewhere it finds that two computations of a value are
    equal, and keeps one.

    Args:
      block: a module that was made in the `nn.compact` method that calls this.
      x: tokens or maps.
      kept: the block's second argument, a row for each picture; may be None.
      remat: keep only the input.
    """
    if block.is_initializing():
        return block(x, kept)
    params, apart = block.variables["params"], block.clone(parent=None, name=None)

    def compute(params: PyTree, x: Array, kept: Array | None) -> Array:
        return jnp.asarray(apart.apply({"params": params}, x, kept))

    b, *places, _ = x.shape
    if jax.default_backend() != "cpu" or not isinstance(b, int):
        return (jax.checkpoint(compute) if remat else compute)(params, x, kept)
    count = pictures_at_a_time(b, math.prod(places))
    # Each device sums its own gradient over the loop, before the sum over devices.
    leaves, tree = jax.tree.flatten((params, x, kept))
    params, x, kept = jax.tree.unflatten(tree, sharding.varying_alike(*map(jnp.asarray, leaves)))
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat else policies.save_only_these_names(_KEPT)
    again = jax.checkpoint(functools.partial(compute, params), policy=policy, prevent_cse=False)
    in_parts = jax.tree.map(lambda rows: rows.reshape(b // count, count, *rows.shape[1:]), (x, kept))
    y = jax.lax.map(lambda part: again(*part), in_parts)
    return y.reshape(b, *y.shape[2:])


def pictures_at_a_time(pictures: int, places: int) -> int:
    """Return how many pictures a block computes at a time on a CPU: a divisor of their number, and few enough.

    Args:
      pictures: all of them.
      places: tokens or pixels of each.
    """
    most = max(1, _TOKENS // places)
    return max(count for count in range(1, min(most, pictures) + 1) if pictures % count == 0)
