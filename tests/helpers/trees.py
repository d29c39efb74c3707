"""The difference of two trees of arrays."""

import jax
import numpy as np


def difference(tree, other) -> float:
    """Return the largest difference of two trees, as a share of the largest number in its array."""
    return max(
        np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-6)
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )
