"""Blocks that pictures skip at random."""

import jax
import numpy as np

from awcl_jax.models.drop_path import draw_kept


def test_what_is_kept_is_scaled_to_the_same_mean():
    keys = jax.random.split(jax.random.key(0), 4000)
    kept = np.asarray(draw_kept(keys, highest=0.5, depth=3, halves=2))
    np.testing.assert_allclose(kept.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(np.unique(kept[:, 1]), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.unique(kept[:, 2]), [0, 2], rtol=1e-6)
