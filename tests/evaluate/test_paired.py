"""Differences of two methods, by hand, and against a slow bootstrap that copies frames."""

import numpy as np
import pytest

from awcl_jax.evaluate.paired import classification_differences, mean_differences
from awcl_jax.evaluate.scores import classification_scores, mean_scores
from awcl_jax.runtime.errors import InputError
from tests.helpers.classified import NAMES, by_name, slow_macro_f1, some_frames

pytestmark = pytest.mark.quick


def test_difference_of_means_by_hand():
    # Patient 1: 0.6 and 0.8 against 0.5 and 0.5, differences 0.1 and 0.3; patient 2: 0.9 against 0.8. Of two patients
    # drawn, both are the first (0.2), both the second (0.1) or each one (0.5 / 3) in 1/4, 1/4 and 1/2 of the draws.
    values, others = (np.array([[x] for x in xs]) for xs in ((0.6, 0.8, 0.9, np.nan), (0.5, 0.5, 0.8, np.nan)))
    scores = mean_differences(values, others, np.array([1, 1, 2, 2]), names=("head",), mean="mean")
    for score, name in zip(scores, ("mean", "head"), strict=True):
        assert (score.name, score.frames, score.patients) == (name, 3, 2)
        assert (score.value, score.low, score.high) == pytest.approx((0.5 / 3, 0.1, 0.2), rel=1e-12)


def test_difference_of_classifications_by_hand():
    # Truth 0 0 1 1. One method is right everywhere; the other takes frame 1, of patient 7, for a 1: accuracy 3/4 and
    # F1 of 2/3 and 4/5. Patient 8 is right in both: a draw of it alone has no difference.
    labels, other = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    scores = by_name(classification_differences(labels, labels, other, np.array([7, 7, 8, 8]), names=("a", "b")))
    found = {name: score.value for name, score in scores.items()}
    expected = {"accuracy": 1 / 4, "balanced_accuracy": 1 / 4, "macro_f1": 4 / 15, "f1/a": 1 / 3, "f1/b": 1 / 5}
    assert found == pytest.approx(expected, rel=1e-12)
    assert (scores["accuracy"].low, scores["accuracy"].high) == (0, 0.5)


def test_interval_is_that_of_a_paired_bootstrap_by_copies():
    labels, one, patients = some_frames(n=150, patients=15)
    other = np.where(np.random.default_rng(5).random(150) < 0.95, one, labels)
    score = by_name(classification_differences(labels, one, other, patients, names=NAMES, resamples=4000))["macro_f1"]
    rng, drawn = np.random.default_rng(99), []
    frames_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    for _ in range(800):
        frames = np.concatenate([frames_of[i] for i in rng.integers(0, len(frames_of), len(frames_of))])
        f1 = [slow_macro_f1(labels[frames], p[frames]) for p in (one, other)]
        drawn.append(f1[0] - f1[1])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert score.low == pytest.approx(low, abs=0.15 * (high - low))
    assert score.high == pytest.approx(high, abs=0.15 * (high - low))
    # Unpaired, the two intervals hide what the paired one shows.
    alone = [by_name(classification_scores(labels, p, patients, names=NAMES))["macro_f1"] for p in (one, other)]
    assert high - low < 0.7 * min(s.high - s.low for s in alone)


def test_a_method_does_not_differ_from_itself():
    labels, predictions, patients = some_frames()
    for score in classification_differences(labels, predictions, predictions, patients, names=NAMES):
        assert (score.value, score.low, score.high) == (0, 0, 0)


def test_seeds_and_patients_are_drawn_apart():
    # Both patients differ by 0.1 with the first seed and by 0.3 with the second. Of two seeds drawn, both are the first
    # in a quarter of the draws, and both the second in another; patients change nothing.
    others = np.full((2, 4, 1), 0.5)
    values = others + np.array([0.1, 0.3])[:, None, None]
    for score in mean_differences(values, others, np.array([1, 1, 2, 2]), names=("head",), mean="mean"):
        assert (score.value, score.low, score.high) == pytest.approx((0.2, 0.1, 0.3), rel=1e-12)
        assert (score.frames, score.patients) == (4, 2)


def test_the_interval_over_seeds_is_that_of_a_bootstrap_by_copies():
    labels, right, patients = some_frames(n=120, patients=12)
    rng = np.random.default_rng(8)
    one, other = (
        np.stack([np.where(rng.random(120) < share, labels, right) for share in shares])
        for shares in ((0.2, 0.7, 0.9), (0.1, 0.2, 0.3))
    )
    found = by_name(classification_differences(labels, one, other, patients, names=NAMES, resamples=4000))["macro_f1"]
    f1 = [[slow_macro_f1(labels, predicted) for predicted in method] for method in (one, other)]
    assert found.value == pytest.approx(np.mean(f1[0]) - np.mean(f1[1]), rel=1e-12)
    frames_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    drawn = []
    for _ in range(800):
        frames = np.concatenate([frames_of[i] for i in rng.integers(0, len(frames_of), len(frames_of))])
        seeds = rng.integers(0, 3, 3)
        f1 = [
            np.mean([slow_macro_f1(labels[frames], method[seed, frames]) for seed in seeds]) for method in (one, other)
        ]
        drawn.append(f1[0] - f1[1])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))
    # The frames of all seeds in one table hide what another seed would change.
    pooled = classification_differences(
        np.tile(labels, 3), one.ravel(), other.ravel(), np.tile(patients, 3), names=NAMES, resamples=4000
    )
    assert by_name(pooled)["macro_f1"].high - by_name(pooled)["macro_f1"].low < 0.8 * (high - low)


def test_other_frames_are_refused():
    values = np.array([[0.5], [np.nan]])
    with pytest.raises(InputError, match="same frames"):
        mean_differences(values, values[::-1], np.arange(2), names=("head",), mean="mean")
    seeds = np.stack([values, values[::-1]])
    with pytest.raises(InputError, match="same frames"):
        mean_differences(seeds, seeds, np.arange(2), names=("head",), mean="mean")
    with pytest.raises(InputError, match="None of these 2 frames"):
        mean_differences(np.full((2, 1), np.nan), np.full((2, 1), np.nan), np.arange(2), names=("head",), mean="mean")


def test_means_are_those_of_frames_that_count():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan], [np.nan, np.nan, np.nan]])
    scores = by_name(mean_scores(values, np.array([4, 6, 6]), names=("a", "b", "c"), mean="mean"))
    assert {name: (s.value, s.frames, s.patients) for name, s in scores.items()} == {
        "mean": (3, 2, 2),
        "a": (2, 2, 2),
        "b": (4, 1, 1),
    }
    assert (scores["a"].low, scores["a"].high) == (1, 3)
