"""The linear probe: the condition of its minimum, and that test frames choose nothing."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import f1_score

from awcl_jax.evaluate.features import FeatureSet
from awcl_jax.evaluate.linear_probe import LinearProbe, _fit
from awcl_jax.runtime.errors import InputError

NAMES = ("abdomen", "femur", "thorax")


def feature_set(n, *, first_patient, seed, f=40, k=3, apart=0.35):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    centres = np.random.default_rng(77).normal(size=(k, f))
    # Dimensions of very different size and offset: only standardised ones are all of use.
    scale = np.geomspace(1e-2, 1e2, f)
    features = (apart * centres[labels] + rng.normal(size=(n, f))) * scale + 10 * scale
    return FeatureSet(features.astype(np.float32), labels, first_patient + np.arange(n) // 4)


def three_sets():
    return [feature_set(n, first_patient=p, seed=p) for n, p in ((80, 0), (100, 1000), (120, 2000))]


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_the_fit_is_the_minimum_of_the_formula(penalty):
    # At the minimum of 1/n sum_i CE(i) + penalty/2 ||W||^2 the gradient (P - Y)^T X / n + penalty W is zero.
    train = feature_set(80, first_patient=0, seed=0)
    weights = _fit(train, penalty)[-1]
    x = train.features.astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    logits = x @ weights.coef_.T + weights.intercept_
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    residual = softmax - np.eye(3)[train.labels]
    gradient = residual.T @ x / len(x) + penalty * weights.coef_
    assert np.abs(gradient).max() < 2e-4
    assert np.abs(penalty * weights.coef_).max() > 2e-3
    assert np.abs(residual.mean(axis=0)).max() < 2e-4


def test_the_penalty_is_the_best_on_validation():
    train, val, test = three_sets()
    penalties = (1e-4, 0.3, 100.0)
    f1 = [
        f1_score(val.labels, _fit(train, p).predict(val.features.astype(np.float64)), average="macro")
        for p in penalties
    ]
    assert len(set(f1)) == 3
    chosen = LinearProbe(penalties=penalties).predict(train, val, test)
    best = LinearProbe(default_penalty=penalties[int(np.argmax(f1))]).predict(train, None, test)
    worst = LinearProbe(default_penalty=penalties[int(np.argmin(f1))]).predict(train, None, test)
    assert chosen.tolist() == best.tolist()
    assert chosen.tolist() != worst.tolist()


def test_test_labels_choose_nothing():
    train, val, test = three_sets()
    probe = LinearProbe(penalties=(1e-4, 0.3, 100.0))
    chosen = probe.predict(train, val, test)
    for penalty in probe.penalties:
        # Test labels that make this penalty perfect on test must not make the probe choose it.
        lure = LinearProbe(default_penalty=penalty).predict(train, None, test)
        assert probe.predict(train, val, dataclasses.replace(test, labels=lure)).tolist() == chosen.tolist()


def test_run_is_deterministic_and_names_its_scores():
    train, val, test = three_sets()
    scores = LinearProbe().run(train, val, test, NAMES)
    assert scores == LinearProbe().run(train, val, test, NAMES)
    assert [s.name for s in scores][:4] == [
        "probe/accuracy",
        "probe/balanced_accuracy",
        "probe/macro_f1",
        "probe/f1/abdomen",
    ]
    assert (scores[0].frames, scores[0].patients) == (120, 30)
    assert scores[0].low > 0.5  # chance is a third


def test_an_anatomy_that_training_lacks_counts_as_an_error():
    train, _, test = three_sets()
    kept = train.labels != 2
    train = FeatureSet(train.features[kept], train.labels[kept], train.patients[kept])
    scores = {s.name: s.value for s in LinearProbe().run(train, None, test, NAMES)}
    assert scores["probe/f1/thorax"] == 0
    # Two thirds at most of three anatomies: the missing one is part of the mean.
    assert scores["probe/macro_f1"] == pytest.approx((scores["probe/f1/abdomen"] + scores["probe/f1/femur"]) / 3)


def test_a_collapsed_encoder_is_scored_not_refused():
    sets = [dataclasses.replace(s, features=np.ones_like(s.features)) for s in three_sets()]
    sets[0].labels[:20] = 1  # now the commonest in training, so all that is left to predict
    scores = LinearProbe().run(*sets, NAMES)
    assert scores[0].value == pytest.approx(np.mean(sets[2].labels == 1))


@pytest.mark.parametrize(("move", "names"), [(1, "train and validation"), (2, "train and test")])
def test_shared_patients_are_refused(move, names):
    sets = three_sets()
    sets[move] = dataclasses.replace(sets[move], patients=sets[move].patients - sets[move].patients.min())
    with pytest.raises(InputError, match=f"in both {names}"):
        LinearProbe().run(*sets, NAMES)


def test_validation_patients_are_not_test_patients():
    train, val, test = three_sets()
    with pytest.raises(InputError, match="in both test and validation"):
        LinearProbe().run(train, val, dataclasses.replace(test, patients=test.patients - 1000), NAMES)


def test_other_refusals():
    train, val, test = three_sets()
    with pytest.raises(InputError, match="all 80 labelled training frames are of anatomy 1"):
        LinearProbe().run(dataclasses.replace(train, labels=np.ones(80, int)), val, test, NAMES)
    with pytest.raises(InputError, match="at least one penalty, all > 0; got"):
        LinearProbe(penalties=())
    with pytest.raises(InputError, match="at least one penalty, all > 0; got"):
        LinearProbe(penalties=(0.0, 1.0))
