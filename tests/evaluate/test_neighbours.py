"""Nearest frames, against a slow loop and by hand."""

import numpy as np
import pytest

from awcl_jax.evaluate import neighbours
from awcl_jax.evaluate.neighbours import nearest, nearest_by_scan, nearest_of_other_scans

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
