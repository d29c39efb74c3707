"""Nearest frames, against a slow loop, scikit-learn and by hand."""

import tracemalloc

import numpy as np
import pytest

from awcl_jax.evaluate import neighbours
from awcl_jax.evaluate.neighbours import nearest, nearest_among, nearest_by_scan, nearest_of_other_scans

pytestmark = pytest.mark.quick

FEATURES = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def slowly(query, others, k):
    cosines = [(cosine(FEATURES[query], FEATURES[other]), other) for other in others]
    return sorted(cosines, reverse=True)[:k]


@pytest.mark.parametrize("k", [1, 7, 39])
def test_nearest_as_a_loop_finds_them(k):
    frames, cosines = nearest(FEATURES, k)
    for query in range(40):
        expected = slowly(query, set(range(40)) - {query}, k)
        assert frames[query].tolist() == [other for _, other in expected]
        np.testing.assert_allclose(cosines[query], [value for value, _ in expected], atol=1e-6)


def drawn(n, *, f, seed, equals=False):
    """Features [n, f] of any length; with `equals` half of them have a twin, so that many cosines are the same."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, f)) * rng.uniform(0.1, 10, (n, 1))
    return features[rng.integers(0, n // 2, n) if equals else np.arange(n)].astype(np.float32)


@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize(("queries", "n", "f"), [(700, 600, 64), (641, 900, 33), (1, 50, 8), (32, 40, 300)])
def test_parts_have_the_bits_of_a_single_product(monkeypatch, queries, n, f, equals):
    from sklearn.neighbors import NearestNeighbors

    monkeypatch.setattr(neighbours, "_COSINES", 64 * n)  # parts of 64 queries; 641 would leave a single one
    features = drawn(n, f=f, seed=1, equals=equals)
    whole = NearestNeighbors(n_neighbors=9, metric="cosine", algorithm="brute").fit(features)
    for found, expected in (
        (nearest_among(others := drawn(queries, f=f, seed=2), features, 9), whole.kneighbors(others)),
        (nearest(features, 9), whole.kneighbors()),
    ):
        np.testing.assert_array_equal(found[0], expected[1])
    np.testing.assert_array_equal(nearest_among(others, features, 9)[1], whole.kneighbors(others)[0])
    np.testing.assert_array_equal(nearest(features, 9)[1], 1 - whole.kneighbors()[0])


def test_memory_grows_with_the_number_of_frames_not_with_its_square(monkeypatch):
    monkeypatch.setattr(neighbours, "_COSINES", 2**14)
    peaks = []
    for n in (1000, 4000):
        features = drawn(n, f=4, seed=0)
        nearest(features[:64], 5)  # imports
        tracemalloc.start()
        nearest(features, 5)
        nearest_among(features, features[::2], 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # All cosines of 4,000 frames are 64 MB, and their order 128 MB.
    assert peaks[1] < 5 * peaks[0] < 10e6


def test_length_does_not_count_and_a_frame_is_not_its_neighbour():
    # Directions of 0, 90, 0 and 45 degrees; cos 45 = 0.7071.
    features = np.array([[1, 0], [0, 3], [5, 0], [2, 2]], np.float32)
    frames, cosines = nearest(features, 2)
    assert frames[0].tolist() == [2, 3]
    assert frames[3][0] in (0, 1, 2)
    np.testing.assert_allclose(cosines[[0, 1]], [[1, 0.70711], [0.70711, 0]], atol=1e-5)


def test_a_small_set_gives_all_there_are():
    assert nearest(FEATURES[:3], 10)[0].shape == (3, 2)
    assert nearest(FEATURES[:1], 10)[0].shape == (1, 0)


def test_the_same_scan_and_unknown_scans_are_left_out():
    scans = np.arange(40) % 4 - 1  # a quarter is unknown
    queries = np.array([1, 5, 38])
    for query, (frames, cosines) in zip(queries, nearest_of_other_scans(FEATURES, scans, queries, 6), strict=True):
        others = [i for i in range(40) if scans[i] != -1 and scans[i] != scans[query]]
        expected = slowly(query, others, 6)
        assert frames.tolist() == [other for _, other in expected]
        np.testing.assert_allclose(cosines, [value for value, _ in expected], atol=1e-6)


def test_where_other_scans_have_too_few_frames_there_are_fewer():
    ((frames, _),) = nearest_of_other_scans(FEATURES[:4], np.array([0, 0, 1, -1]), np.array([0]), 3)
    assert frames.tolist() == [2]


def test_neighbours_by_scan_as_a_loop_finds_them(monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 7)  # so that frames are compared in several parts
    scans = np.random.default_rng(1).integers(0, 9, 40)
    same, others = nearest_by_scan(FEATURES, scans, 6)
    for query in range(40):
        own = set(np.flatnonzero(scans == scans[query]).tolist())
        for found, candidates in ((same, own - {query}), (others, set(range(40)) - own)):
            expected = slowly(query, candidates, 6)
            frames = found.frames[query][found.frames[query] >= 0]
            assert frames.tolist() == [other for _, other in expected]
            np.testing.assert_allclose(found.cosines[query][: len(frames)], [c for c, _ in expected], atol=1e-6)
            assert not found.cosines[query][len(frames) :].any()


def test_a_lone_frame_has_no_neighbours():
    same, others = nearest_by_scan(FEATURES[:1], np.array([0]), 3)
    assert same.frames.tolist() == others.frames.tolist() == [[-1, -1, -1]]
