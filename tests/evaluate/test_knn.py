"""Nearest neighbours against a slow loop over the formula, and the checks of a feature set."""

import jaxtyping
import numpy as np
import pytest

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.evaluate.features import FeatureSet
from awcl_jax.evaluate.knn import KNN
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

NAMES = ("abdomen", "femur", "thorax")


def feature_set(n, *, first_patient, seed, apart=0.7, f=6):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    centres = np.random.default_rng(77).normal(size=(3, f))
    # Lengths differ, so that a Euclidean neighbour is not a cosine neighbour.
    features = (apart * centres[labels] + rng.normal(size=(n, f))) * rng.uniform(0.1, 10, (n, 1))
    return FeatureSet(features.astype(np.float32), labels, first_patient + np.arange(n) // 4)


def slow_votes(train, test, neighbours, temperature):
    predictions = []
    for x in test.features.astype(np.float64):
        cosines = []
        for i, y in enumerate(train.features.astype(np.float64)):
            cosines.append((np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)), i))
        votes = [0.0, 0.0, 0.0]
        for cosine, i in sorted(cosines, reverse=True)[:neighbours]:
            votes[train.labels[i]] += np.exp(cosine / temperature)
        predictions.append(int(np.argmax(votes)))
    return predictions


@pytest.mark.parametrize(("neighbours", "temperature"), [(1, 0.07), (20, 0.07), (20, 5.0), (60, 0.02), (500, 0.3)])
def test_votes_are_those_of_the_formula(neighbours, temperature):
    train, test = feature_set(60, first_patient=0, seed=0), feature_set(50, first_patient=100, seed=1)
    knn = KNN(neighbours=neighbours, temperature=temperature)
    assert knn.predict(train, test).tolist() == slow_votes(train, test, neighbours, temperature)


def test_a_low_temperature_does_not_underflow():
    # One frame of femur at cosine 0.8, two of abdomen at 0.6. In float64 exp(0.8 / 1e-4) is infinite and
    # exp((0.8 - 1) / 1e-4) is zero; only when counted from the nearest does a vote remain.
    train = FeatureSet(np.array([[0.6, 0.8], [0.8, 0.6], [0.6, 0.8]], np.float32), np.array([0, 1, 0]), np.arange(3))
    test = FeatureSet(np.array([[1.0, 0.0]], np.float32), np.array([1]), np.array([9]))
    assert KNN(temperature=1e-4).predict(train, test).tolist() == [1]
    assert KNN(temperature=10.0).predict(train, test).tolist() == [0]


def test_run_scores_labelled_frames_only():
    train, test = (
        feature_set(90, first_patient=0, seed=0, apart=4.0),
        feature_set(60, first_patient=100, seed=1, apart=4.0),
    )
    hidden = test.labels.copy()
    hidden[::2] = UNLABELLED
    scores = {s.name: s for s in KNN().run(train, FeatureSet(test.features, hidden, test.patients), NAMES)}
    assert list(scores)[:4] == ["knn/accuracy", "knn/balanced_accuracy", "knn/macro_f1", "knn/f1/abdomen"]
    assert scores["knn/accuracy"].frames == 30
    expected = np.mean(np.array(slow_votes(train, test, 20, 0.07))[1::2] == test.labels[1::2])
    assert scores["knn/accuracy"].value == pytest.approx(expected)
    assert scores["knn/accuracy"].value > 0.9


def test_unlabelled_training_frames_do_not_vote():
    train, test = feature_set(40, first_patient=0, seed=0), feature_set(20, first_patient=100, seed=1)
    copies = FeatureSet(test.features, np.full(20, UNLABELLED), np.arange(20) + 500)
    both = FeatureSet(*(np.concatenate(pair) for pair in zip(astuple(train), astuple(copies), strict=True)))
    assert KNN().predict(both, test).tolist() == KNN().predict(train, test).tolist()


def astuple(features):
    return features.features, features.labels, features.patients


def test_a_patient_in_both_sets_is_refused():
    train, test = feature_set(40, first_patient=0, seed=0), feature_set(40, first_patient=9, seed=1)
    with pytest.raises(InputError, match=r"1 are in both train and test \(the first is 9\)\. Split by patient"):
        KNN().run(train, test, NAMES)


def test_no_labelled_frame_is_refused():
    train = feature_set(40, first_patient=0, seed=0)
    test = FeatureSet(train.features, np.full(40, UNLABELLED), train.patients + 100)
    with pytest.raises(InputError, match="none of these 40 frames has a label"):
        KNN().run(train, test, NAMES)


def test_a_feature_set_checks_itself():
    good = feature_set(4, first_patient=0, seed=0)
    broken = good.features.copy()
    broken[2, 1] = np.nan
    with pytest.raises(InputError, match="1 of 4 frames are not"):
        FeatureSet(broken, good.labels, good.patients)


def test_a_feature_set_checks_its_lengths_without_a_type_checker(monkeypatch):
    good = feature_set(4, first_patient=0, seed=0)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=r"\(4, 3, 4\)"):
        FeatureSet(good.features, good.labels[:3], good.patients)


@pytest.mark.parametrize("settings", [{"neighbours": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_settings_that_cannot_work(settings):
    with pytest.raises(InputError, match="got"):
        KNN(**settings)
