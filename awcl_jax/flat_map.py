"""Features of many dimensions on a map of two."""

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from awcl_jax.errors import InputError


def flat_map(features: Float[np.ndarray, "n f"], *, seed: int) -> Float[np.ndarray, "n 2"]:
    """Places on a map where frames with like features lie together.

    Features of unit length go through PCA to 50 dimensions and t-SNE (van der Maaten & Hinton 2008) to two; distances
    between far groups on such a map mean little.

    Args:
      features: of the frames.
      seed: of PCA and t-SNE.

    Raises:
      InputError: there are fewer than four frames.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    if len(features) < 4:
        raise InputError(f"A map needs at least four frames; got {len(features)}.")
    rows = normalize(features.astype(np.float64))
    if np.ptp(rows, axis=0).max() < 1e-6:
        # A collapsed encoder: t-SNE would divide by a deviation of zero, and one point is the true picture.
        return np.zeros((len(rows), 2))
    flat = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
    perplexity = min(30.0, (len(rows) - 1) / 3)
    # PCA's first two columns start t-SNE, scaled as its authors advise; there may be only one column.
    start = np.zeros((len(rows), 2))
    start[:, : flat.shape[1]] = flat[:, :2] / flat[:, 0].std() * 1e-4
    # Its threads wait for each other by spinning; on two busy cores they took six times as long as one.
    with threadpool_limits(1):
        return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(flat)
