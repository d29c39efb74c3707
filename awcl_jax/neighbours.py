"""Frames that an encoder finds alike."""

import numpy as np
from jaxtyping import Float, Float32, Int
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors


def nearest(features: Float32[np.ndarray, "n f"], k: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k frames whose features have the greatest cosine with each frame's, itself left out.

    Returns:
      (which frames, their cosines), the nearest first; of a set with fewer than k others, all others.
    """
    k = min(k, len(features) - 1)
    if k < 1:
        return np.zeros((len(features), 0), np.int64), np.zeros((len(features), 0), np.float32)
    found = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(features)
    distances, frames = found.kneighbors()
    return frames, (1 - distances).astype(np.float32)


def nearest_of_other_scans(
    features: Float32[np.ndarray, "n f"], scans: Int[np.ndarray, " n"], queries: Int[np.ndarray, " q"], k: int
) -> list[tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """The k nearest frames, by cosine, of scans other than each query's own.

    Args:
      features: of all frames.
      scans: of all frames; one whose scan is not known, -1, is nobody's neighbour, as it may be of the same scan.
      queries: frames whose neighbours are wanted.
      k: how many.

    Returns:
      For each query (which frames, their cosines), the nearest first; fewer than k where other scans have fewer frames.
    """
    found = []
    for query, cosines in zip(queries, cosine_similarity(features[queries], features), strict=True):
        others = np.flatnonzero((scans >= 0) & (scans != scans[query]))
        others = others[np.argsort(-cosines[others], kind="stable")[:k]]
        found.append((others, cosines[others]))
    return found
