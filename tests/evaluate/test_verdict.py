"""A bad run is called bad, in sentences; a good one is not."""

import math

import pytest

from awcl_jax.evaluate.scores import Score
from awcl_jax.evaluate.verdict import said_of_few, verdict

pytestmark = pytest.mark.quick

GOOD = {
    "losses": [(3.0, 4.0), (2.0, 4.0)],
    "differences": {"untrained": Score("knn/macro_f1", 0.2, 0.1, 0.3, 90, 30)},
    "health": {
        "untrained": {"retrieval/view": 0.4, "retrieval/scan": 0.2, "effective_rank": 3.0},
        "trained": {"retrieval/view": 0.9, "retrieval/scan": 0.2, "effective_rank": 12.0},
    },
    "patients": 30,
}


def difference(value, low, high):
    return {"differences": {"pixels": Score("knn/macro_f1", value, low, high, 9, 3)}}


def test_a_good_run():
    assert verdict(**GOOD) == [
        "Loss 2.500: below the 4.000 of a collapsed encoder (an encoder that maps all frames to one point).",
        "kNN macro-F1 on test patients, trained minus untrained: +0.200 (+0.100 to +0.300, paired): better.",
        (
            "Without labels, on validation frames: the nearest is the other view of the same frame for 90% (untrained "
            "40%), the nearest is another frame of the same scan for 20% (untrained 20%), features use 12.0 dimensions "
            "(effective rank; untrained 3.0)."
        ),
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": [(3.95, 4.0)]}, "BAD: loss 3.950 is not clearly below the 4.000 of a collapsed encoder"),
        ({"losses": [(math.nan, 4.0)]}, "BAD: loss nan is not a number: it learned nothing."),
        (difference(0.1, -0.1, 0.3), "(-0.100 to +0.300, paired): no difference can be seen."),
        (difference(-0.2, -0.3, -0.1), "trained minus pixels: -0.200 (-0.300 to -0.100, paired): worse."),
        (difference(0.3, math.nan, math.nan), "trained minus pixels: +0.300, of one patient"),
        ({"patients": 9}, "BAD: only 9 test patient(s)"),
        ({"health": {name: {"retrieval/view": 0.5} for name in ("untrained", "trained")}}, "no better than untrained."),
    ],
)
def test_what_is_bad(changes, sentence):
    (bad,) = [line for line in verdict(**{**GOOD, **changes}) if line.startswith("BAD")]
    assert sentence in bad


@pytest.mark.parametrize(
    ("shown_by", "listed"),
    [
        ({"heart": 3, "spine": 40}, None),
        ({"heart": 30, "cervix": 1}, "rest as much on cervix (1 test patient) as on"),
        ({"femur": 2, "cervix": 1}, "rest as much on cervix (1 test patient), femur (2 test patients) as on"),
        ({f"{n}": 1 for n in range(7)}, "4 (1 test patient), 2 more as on"),
    ],
)
def test_anatomies_of_few_test_patients_are_named(shown_by, listed):
    found = [line for line in verdict(**GOOD, shown_by=shown_by) if "Macro-F1 and its interval" in line]
    assert [listed in line for line in found] == ([] if listed is None else [True])
    assert verdict(losses=[], differences={}, health={}, patients=0, shown_by=shown_by) == []


def test_nothing_scored_says_nothing_of_test_patients():
    assert not any("test patient" in line for line in verdict(**{**GOOD, "differences": {}, "patients": 0}))
    assert verdict(losses=[], differences={}, health={}, patients=0) == []


def test_ten_patients_are_enough_to_say_nothing():
    assert said_of_few(10) == []
    assert said_of_few(1) == ["BAD: only 1 test patient(s), too few to rely on any score or interval."]
