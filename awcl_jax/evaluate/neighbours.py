"""Nearest neighbours of frames, by cosine of their features, in memory that grows with the number of frames."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

_ROWS = 512  # frames compared with all others at a time
_COSINES = 2**20  # computed at a time, but always those of `_LEAST_ROWS` frames
_LEAST_ROWS = 16


def nearest_among(
    queries: Float32[np.ndarray, "q f"], features: Float32[np.ndarray, "n f"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Return, for each query, the k frames whose features have the greatest cosine with its own.

    Args:
      queries: features of the frames to find neighbours of.
      features: of the frames to choose from.
      k: how many, at most n.

    Returns:
      (which frames, 1 - their cosines), the nearest first.
    """
    from sklearn.preprocessing import normalize

    return _nearest(normalize(queries), normalize(features), k)


def nearest(features: Float32[np.ndarray, "n f"], k: int) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """Return, for each frame, the k other frames whose features have the greatest cosine with its own.

    Returns:
      (which frames, their cosines), the nearest first; all others if there are fewer than k.
    """
    from sklearn.preprocessing import normalize

    n = len(features)
    k = min(k, n - 1)
    if k < 1:
        return np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32)
    rows = normalize(features)
    frames, distances = _nearest(rows, rows, k + 1)
    others = frames != np.arange(n)[:, None]
    others[others.all(axis=1), 0] = False  # it has more than k equals, and they displaced it
    return frames[others].reshape(n, k), 1 - distances[others].reshape(n, k)


def _nearest(
    queries: Float32[np.ndarray, "q f"], rows: Float32[np.ndarray, "n f"], k: int
) -> tuple[Int[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
    """Return as `nearest_among`, of features of length 1; of the same array twice, each frame is its own nearest."""
    frames, distances = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for part in _parts(len(queries), len(rows)):
        block = queries[part] @ rows.T
        np.clip(1 - block, 0, 2, out=block)
        if queries is rows:
            block[np.arange(part.stop - part.start), np.arange(part.start, part.stop)] = 0
        top = np.argpartition(block, k - 1, axis=1)[:, :k]
        top = np.take_along_axis(top, np.argsort(np.take_along_axis(block, top, 1), axis=1), 1)
        frames[part], distances[part] = top, np.take_along_axis(block, top, 1)
    return frames, distances


def _parts(queries: int, n: int) -> Iterator[slice]:
    """Yield parts of the queries whose cosines with n frames are computed at a time.

    Parts are cut so that each cosine has the same bits as in one product of all: a product's kernels take 16 rows at a
    time, and NumPy computes a single row by another routine, so none is left over.
    """
    rows = max(_LEAST_ROWS, _COSINES // n // _LEAST_ROWS * _LEAST_ROWS)
    start = 0
    while start < queries:
        stop = queries if queries - start <= rows + 1 else start + rows
        yield slice(start, stop)
        start = stop


def nearest_of_other_scans(
    features: Float32[np.ndarray, "n f"], scans: Int[np.ndarray, " n"], queries: Int[np.ndarray, " q"], k: int
) -> list[tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Return, for each query, the k nearest frames, by cosine, of other scans.

    Args:
      features: of all frames.
      scans: of all frames; a frame of unknown scan, -1, is never a neighbour, because it may be of the same scan.
      queries: frames to find neighbours of.
      k: how many.

    Returns:
      For each query (which frames, their cosines), the nearest first; fewer than k if other scans have fewer frames.
    """
    from sklearn.metrics.pairwise import cosine_similarity

    neighbours = []
    for query, cosines in zip(queries, cosine_similarity(features[queries], features), strict=True):
        others = np.flatnonzero((scans >= 0) & (scans != scans[query]))
        others = others[np.argsort(-cosines[others], kind="stable")[:k]]
        neighbours.append((others, cosines[others]))
    return neighbours


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The k nearest of n frames, the nearest first.

    Attributes:
      frames: which frames, -1 for missing ones.
      cosines: their cosines, 0 for missing ones.
    """

    frames: Int32[np.ndarray, "n k"]
    cosines: Float32[np.ndarray, "n k"]


def nearest_by_scan(
    features: Float32[np.ndarray, "n f"], scans: Int[np.ndarray, " n"], k: int
) -> tuple[Neighbours, Neighbours]:
    """Return, for each frame, the k nearest other frames of its scan and the k nearest of other scans, by cosine.

    Returns:
      (of the same scan, of other scans)
    """
    from sklearn.preprocessing import normalize

    n = len(features)
    rows = normalize(features)
    nearest_frames = [(np.full((n, k), -1, np.int32), np.zeros((n, k), np.float32)) for _ in range(2)]
    for start in range(0, n, _ROWS):
        mine = np.arange(start, min(start + _ROWS, n))
        cosines = rows[mine] @ rows.T
        same = scans[mine, None] == scans
        for (frames, values), allowed in zip(nearest_frames, (same, ~same), strict=True):
            candidates = np.where(allowed, cosines, -np.inf)
            candidates[np.arange(mine.size), mine] = -np.inf
            m = min(k, n)
            top = np.argpartition(-candidates, m - 1, axis=1)[:, :m]
            top = np.take_along_axis(top, np.argsort(-np.take_along_axis(candidates, top, 1), axis=1), 1)
            best = np.take_along_axis(candidates, top, 1)
            frames[mine, :m] = np.where(np.isfinite(best), top, -1)
            values[mine, :m] = np.where(np.isfinite(best), best, 0)
    same_scan, other_scans = (Neighbours(*pair) for pair in nearest_frames)
    return same_scan, other_scans
