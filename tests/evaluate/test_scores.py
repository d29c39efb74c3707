"""Scores against scikit-learn, their intervals against a slow bootstrap that copies frames."""

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from awcl_jax.evaluate.paired import classification_differences
from awcl_jax.evaluate.scores import MOST_ANATOMIES, Score, classification_scores, prefixed, rate_scores
from awcl_jax.runtime.errors import InputError
from tests.helpers.classified import NAMES, by_name, slow_macro_f1, some_frames

pytestmark = pytest.mark.quick


def test_scores_by_hand():
    # True 0 0 0 1, predicted 0 0 1 1: C = [[2, 1], [0, 1]]; recalls 2/3 and 1; F1 4/5 and 2/3.
    labels, predictions, patients = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), np.array([5, 5, 8, 9])
    scores = by_name(classification_scores(labels, predictions, patients, names=("a", "b", "unseen")))
    assert list(scores) == ["accuracy", "balanced_accuracy", "macro_f1", "f1/a", "f1/b"]
    values = [score.value for score in scores.values()]
    np.testing.assert_allclose(values, [3 / 4, 5 / 6, 11 / 15, 4 / 5, 2 / 3], rtol=1e-12)
    counts = [(score.frames, score.patients) for score in scores.values()]
    assert counts == [(4, 3), (4, 3), (4, 3), (3, 2), (1, 1)]


def test_scores_are_those_of_scikit_learn():
    labels, predictions, patients = some_frames()
    scores = by_name(classification_scores(labels, predictions, patients, names=NAMES))
    present = np.unique(labels)
    assert scores["accuracy"].value == pytest.approx(accuracy_score(labels, predictions), rel=1e-12)
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert scores["balanced_accuracy"].value == pytest.approx(
            balanced_accuracy_score(labels, predictions), rel=1e-12
        )
    macro = f1_score(labels, predictions, labels=present, average="macro")
    assert scores["macro_f1"].value == pytest.approx(macro, rel=1e-12)
    assert slow_macro_f1(labels, predictions) == pytest.approx(macro, rel=1e-12)
    for label, f1 in zip(present, f1_score(labels, predictions, labels=present, average=None), strict=True):
        assert scores[f"f1/{NAMES[label]}"].value == pytest.approx(f1, rel=1e-12)
    assert "f1/cervix" not in scores


def by_confusion_matrices(labels, predictions, patients, names, resamples=1000, seed=0):
    """Return the first three scores and each F1 with all draws, the long way: every patient's confusion matrix."""
    unique, patient = np.unique(patients, return_inverse=True)
    k = len(names)
    tables = np.zeros((len(unique), k, k), np.int64)
    np.add.at(tables, (patient, labels, predictions), 1)
    p = len(unique)
    times = np.random.default_rng([seed, 0xB007]).multinomial(p, np.full(p, 1 / p), size=resamples)
    drawn = (times.astype(np.float64) @ tables.reshape(p, -1)).reshape(-1, k, k)
    for confusions in (tables.sum(axis=0)[None], drawn):
        hits = np.diagonal(confusions, axis1=-2, axis2=-1)
        true, predicted = confusions.sum(axis=-1), confusions.sum(axis=-2)
        absent = np.full(hits.shape, np.nan)
        recall = np.divide(hits, true, out=absent.copy(), where=true > 0)
        f1 = np.divide(2 * hits, true + predicted, out=absent.copy(), where=true > 0)
        accuracy = hits.sum(axis=-1) / true.sum(axis=-1)
        yield np.column_stack([accuracy, np.nanmean(recall, axis=-1), np.nanmean(f1, axis=-1), f1])


@pytest.mark.parametrize("k", [4, 30, 150])
def test_scores_have_the_bits_of_confusion_matrices(k):
    rng = np.random.default_rng(k)
    labels = rng.integers(0, k // 2, 400)
    predictions = np.where(rng.random(400) < 0.6, labels, rng.integers(0, k, 400))
    patients, names = rng.integers(0, 40, 400), [str(c) for c in range(k)]
    values, drawn = by_confusion_matrices(labels, predictions, patients, names)
    shown = ~np.isnan(values[0])
    ends = np.nanpercentile(drawn[:, shown], [2.5, 97.5], axis=0)
    scores = classification_scores(labels, predictions, patients, names=names)
    assert [score.value for score in scores] == values[0, shown].tolist()
    several = [score.patients > 1 for score in scores]
    assert [score.low for score in scores if score.patients > 1] == ends[0, several].tolist()
    assert [score.high for score in scores if score.patients > 1] == ends[1, several].tolist()


def many(k, n=900):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, n)
    return labels, np.where(rng.random(n) < 0.5, labels, rng.integers(0, k, n)), rng.integers(0, 300, n)


@pytest.mark.parametrize("k", [1000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_memory_grows_with_the_anatomies_not_with_their_square(k):
    labels, predictions, patients = many(k)
    names = [str(c) for c in range(k)]
    tracemalloc.start()
    try:
        scores = classification_scores(labels, predictions, patients, names=names)
        rates = rate_scores(labels, predictions, patients, names=names)
        differences = classification_differences(labels, predictions, labels, patients, names=names)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6  # 20 GB with a confusion matrix for each draw
    shown = len(np.unique(labels)) if k <= MOST_ANATOMIES else 0
    assert [len(scores), len(rates), len(differences)] == [3 + shown, 2 + 2 * shown, 3 + shown]
    assert scores[0].value == np.mean(labels == predictions)


def test_interval_is_that_of_a_bootstrap_that_copies_frames():
    labels, predictions, patients = some_frames(n=120, patients=12)
    score = by_name(classification_scores(labels, predictions, patients, names=NAMES, resamples=4000))["macro_f1"]
    rng, drawn = np.random.default_rng(99), []
    frames_of = [np.flatnonzero(patients == patient) for patient in np.unique(patients)]
    for _ in range(1000):
        frames = np.concatenate([frames_of[i] for i in rng.integers(0, len(frames_of), len(frames_of))])
        drawn.append(slow_macro_f1(labels[frames], predictions[frames]))
    # Other draws: the ends of 1,000 draws wander by a tenth of the interval.
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert score.low == pytest.approx(low, abs=0.12 * (high - low))
    assert score.high == pytest.approx(high, abs=0.12 * (high - low))


def test_copies_of_a_frame_do_not_narrow_the_interval():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, 40)
    predictions = np.where(rng.random(40) < 0.7, labels, (labels + 1) % 3)
    once = classification_scores(labels, predictions, np.arange(40), names=NAMES)
    copies = [np.repeat(array, 25) for array in (labels, predictions, np.arange(40))]
    often = classification_scores(*copies, names=NAMES)
    as_if_patients = classification_scores(*copies[:2], np.arange(1000), names=NAMES)
    for one, many, fooled in zip(once, often, as_if_patients, strict=True):
        # The same draws of the same patients; the copies change the counts by a factor only.
        assert (many.value, many.low, many.high) == pytest.approx((one.value, one.low, one.high), rel=1e-12)
        # 25 times the frames would promise an interval a fifth as wide.
        assert fooled.high - fooled.low < 0.35 * (many.high - many.low)


def test_interval_covers_the_truth_about_as_often_as_claimed():
    # Patients differ: each has its own chance of a right prediction, 0.7 on average.
    covered = 0
    for trial in range(200):
        rng = np.random.default_rng([trial, 1])
        patients = np.repeat(np.arange(40), 10)
        right = rng.random(400) < rng.beta(3.5, 1.5, 40)[patients]
        labels = rng.integers(0, 2, 400)
        score = classification_scores(
            labels, np.where(right, labels, 1 - labels), patients, names=NAMES, resamples=200
        )[0]
        covered += score.low <= 0.7 <= score.high
    # Percentile intervals of 40 patients cover a little less than 95%; of 200 trials the deviation is 1.5%.
    assert 0.88 <= covered / 200 <= 0.99


def test_same_seed_same_interval_in_any_order_of_frames():
    labels, predictions, patients = some_frames()
    order = np.random.default_rng(1).permutation(len(labels))
    one = classification_scores(labels, predictions, patients, names=NAMES, seed=4)
    assert one == classification_scores(labels[order], predictions[order], patients[order], names=NAMES, seed=4)
    assert one[0].low != classification_scores(labels, predictions, patients, names=NAMES, seed=5)[0].low


def test_one_patient_has_no_interval():
    scores = classification_scores(np.array([0, 1]), np.array([0, 0]), np.array([7, 7]), names=NAMES)
    assert all(np.isnan(score.low) and np.isnan(score.high) for score in scores)
    assert str(scores[0]) == "0.500 (one patient)"


def test_prefixed_changes_the_name_only():
    score = Score("macro_f1", 0.5, 0.4, 0.6, frames=9, patients=3)
    assert prefixed("knn", [score]) == [Score("knn/macro_f1", 0.5, 0.4, 0.6, frames=9, patients=3)]
    assert str(score) == "0.500 (0.400 to 0.600)"


@pytest.mark.parametrize(
    ("labels", "predictions", "resamples", "message"),
    [
        ([], [], 1000, "at least one frame"),
        ([0, -1], [0, 0], 1000, "got values from -1 to 0. Drop unlabelled"),
        ([0, 1], [0, 4], 1000, "prediction must be one of the 4 anatomies"),
        ([0, 1], [0, 1], 10, "at least 100 resamples; got 10"),
    ],
)
def test_refusals(labels, predictions, resamples, message):
    with pytest.raises(InputError, match=message):
        classification_scores(
            np.array(labels, int),
            np.array(predictions, int),
            np.arange(len(labels)),
            names=NAMES,
            resamples=resamples,
        )
