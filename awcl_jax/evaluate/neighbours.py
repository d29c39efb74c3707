"""Frames that an encoder finds alike."""

import dataclasses

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

_ROWS = 512  # frames compared with all others at a time


def nearest(features: Float32[np.ndarray, "n f"], k: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """The k frames whose features have the greatest cosine with each frame's, itself left out.

    Returns:
      (which frames, their cosines), the nearest first; of a set with fewer than k others, all others.
    """
    from sklearn.neighbors import NearestNeighbors

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
    from sklearn.metrics.pairwise import cosine_similarity

    found = []
    for query, cosines in zip(queries, cosine_similarity(features[queries], features), strict=True):
        others = np.flatnonzero((scans >= 0) & (scans != scans[query]))
        others = others[np.argsort(-cosines[others], kind="stable")[:k]]
        found.append((others, cosines[others]))
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest of n frames, the nearest first.

    Attributes:
      frames: which frames, -1 where there are fewer.
      cosines: their cosines, 0 where there are fewer.
    """

    frames: Int32[np.ndarray, "n k"]
    cosines: Float32[np.ndarray, "n k"]


def nearest_by_scan(
    features: Float32[np.ndarray, "n f"], scans: Int[np.ndarray, " n"], k: int
) -> tuple[Neighbours, Neighbours]:
    """The k frames of a frame's own scan, and the k of other scans, with the greatest cosine; itself left out.

    Returns:
      (of the same scan, of other scans)
    """
    from sklearn.preprocessing import normalize

    n = len(features)
    rows = normalize(features)
    found = [(np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)) for _ in range(2)]
    for start in range(0, n, _ROWS):
        mine = np.arange(start, min(start + _ROWS, n))
        cosines = rows[mine] @ rows.T
        same = scans[mine, None] == scans
        for (frames, values), wanted in zip(found, (same, ~same), strict=True):
            candidates = np.where(wanted, cosines, -np.inf)
            candidates[np.arange(mine.size), mine] = -np.inf
            m = min(k, n)
            top = np.argpartition(-candidates, m - 1, axis=1)[:, :m]
            top = np.take_along_axis(top, np.argsort(-np.take_along_axis(candidates, top, 1), axis=1), 1)
            best = np.take_along_axis(candidates, top, 1)
            frames[mine, :m] = np.where(np.isfinite(best), top, -1)
            values[mine, :m] = np.where(np.isfinite(best), best, 0)
    same_scan, other_scans = (Neighbours(*pair) for pair in found)
    return same_scan, other_scans
