"""Blocks that pictures skip at random in training (stochastic depth, Huang et al. 2016)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

_DROPS = 0xD409  # folded into a view's key; the augmentation folds other numbers


def draw_kept(
    keys: Key[Array, " b"] | None, *, highest: float, depth: int, halves: int = 1
) -> Float[Array, "b depth halves"]:
    """Return factors of what each block adds: 0 where a picture skips it, else so that their mean stays 1.

    Args:
      keys: of the pictures.
      highest: probability that the last block is skipped; it grows from 0 at the first.
      depth: number of blocks.
      halves: parts of a block that are skipped each for itself.
    """
    assert keys is not None, "drop_path draws by keys"
    share = np.arange(depth, dtype=np.float32) / max(depth - 1, 1)
    rates = jnp.asarray(highest * share).reshape(1, -1, 1)

    def draw(key: Key[Array, ""]) -> Float[Array, "depth halves"]:
        return jax.random.uniform(jax.random.fold_in(key, _DROPS), (depth, halves))

    drawn: Bool[Array, "b depth halves"] = jax.vmap(draw)(keys) >= rates
    return drawn / (1 - rates)
