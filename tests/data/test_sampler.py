"""The frames of a batch."""

import itertools
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from awcl_jax.data import sampler
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan, EpochPlan, composition
from awcl_jax.runtime.errors import InputError
from tests.helpers import slow_plan

quickly = settings(max_examples=50, deadline=None, derandomize=True)


@st.composite
def tables(draw, largest_class: int = 4):
    """Class and unit of 8 to 60 frames; a unit may be of several classes, a class of one unit."""
    n = draw(st.integers(8, 60))
    classes = draw(st.lists(st.integers(UNLABELLED, largest_class), min_size=n, max_size=n))
    units = draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))
    return np.array(classes), np.array(units)


@pytest.fixture
def table():
    """200 frames of 5 classes and 40 scans, a fifth of them unlabelled."""
    rng = np.random.default_rng(1)
    return rng.integers(-1, 5, 200), np.sort(rng.integers(0, 40, 200))


def may_plan(*args, **kwargs) -> BatchPlan:
    try:
        return BatchPlan(*args, **kwargs)
    except InputError:
        assume(False)
        raise


def lacks_other_unit(classes, units, frames):
    """Labelled frames of a batch whose class has two units, but not in this batch. A slow loop."""
    return [
        f
        for f in frames
        if len({units[g] for g in np.flatnonzero(classes == classes[f])}) > 1
        and classes[f] != UNLABELLED
        and not any(classes[g] == classes[f] and units[g] != units[f] for g in frames)
    ]


# Balanced -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(5))
def test_balanced_batch_has_anatomies_x_scans_and_unlabelled(table, step):
    classes, scans = table
    plan = BatchPlan(classes, scans, 16, 0, anatomies=3, units_per_class=4, unlabelled_share=0.25)
    frames = plan.frames(step)
    assert (classes[frames] == UNLABELLED).sum() == 4
    for anatomy in (present := set(classes[frames]) - {UNLABELLED}):
        assert len(set(scans[frames[classes[frames] == anatomy]])) == 4
    assert len(present) == 3


def test_a_class_with_fewer_scans_gives_what_it_has():
    classes, scans = np.repeat([0, 1], [3, 40]), np.array([0, 1, 2, *range(40)])
    frames = BatchPlan(classes, scans, 16, 0, units_per_class=8).frames(0)
    assert sorted(frames[classes[frames] == 0]) == [0, 1, 2]
    assert len(set(frames)) == 16


@quickly
@given(tables(), st.integers(2, 30), st.integers(2, 4), st.sampled_from([0.0, 0.25, 0.6]), st.integers(0, 1000))
def test_a_balanced_batch_is_full_and_its_frames_are_distinct(table, batch_size, scans_per_class, share, step):
    plan = may_plan(*table, batch_size, 3, units_per_class=scans_per_class, unlabelled_share=share)
    frames = plan.frames(step)
    assert len(frames) == len(set(frames)) == batch_size
    assert set(frames) <= set(range(len(table[0])))


@quickly
@given(tables(), st.integers(4, 30), st.integers(2, 4), st.sampled_from([0.0, 0.25]), st.integers(0, 1000))
def test_every_labelled_anchor_has_a_positive_of_another_scan(table, batch_size, scans_per_class, share, step):
    plan = may_plan(*table, batch_size, 3, units_per_class=scans_per_class, unlabelled_share=share)
    assert lacks_other_unit(*table, plan.frames(step)) == []


@pytest.mark.parametrize("step", range(5))
def test_many_small_classes_leave_no_anchor_alone(step):
    classes, scans = np.repeat(np.arange(20), 2), np.arange(40)
    frames = BatchPlan(classes, scans, 32, 0, units_per_class=4).frames(step)
    assert lacks_other_unit(classes, scans, frames) == []


def test_a_rare_class_adds_one_to_the_anatomies_of_a_batch():
    # Class 0 has two frames, too few for a batch of 8 by itself; each other class has enough.
    classes, units = np.repeat([0, 1, 2, 3], [2, 100, 100, 100]), np.concatenate([[0, 1], np.arange(300) % 50])
    plan = BatchPlan(classes, units, 8, seed=0, anatomies=1, units_per_class=2)
    found = [set(classes[plan.frames(step)].tolist()) for step in range(100)]
    assert {len(batch) for batch in found if 0 in batch} == {2}
    assert {len(batch) for batch in found if 0 not in batch} == {1}


def test_frames_of_every_class_are_drawn_about_equally_often(table):
    classes, scans = table
    plan = BatchPlan(classes, scans, 12, 0, anatomies=2, units_per_class=4, unlabelled_share=0.3)
    drawn = np.concatenate([plan.frames(step) for step in range(600)])
    # Of 12 rows 8 are labelled: over 5 classes 1.6 rows of each a step, 960 in all, with a deviation of about
    # 4 * sqrt(600 * 0.4 * 0.6) = 48.
    counts = np.bincount(classes[drawn] + 1)[1:]
    np.testing.assert_allclose(counts, 960, atol=200)
    assert set(drawn) == set(range(200))


# A function of (seed, step) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"mode": "natural"}, {"pairs": "cross_scan"}], ids=str)
def test_a_batch_depends_on_seed_and_step_alone(table, options):
    plan = BatchPlan(*table, 16, 7, **options)
    forwards = [(plan.frames(step), plan.partners(step)) for step in range(30)]
    for step in (29, 3, 17, 0, 3):
        fresh = BatchPlan(*table, 16, 7, **options)
        np.testing.assert_array_equal(fresh.frames(step), forwards[step][0])
        np.testing.assert_array_equal(fresh.partners(step), forwards[step][1])
    assert len({tuple(frames) for frames, _ in forwards}) == 30
    other = BatchPlan(*table, 16, 8, **options)
    assert any((other.frames(step) != forwards[step][0]).any() for step in range(30))


def test_another_process_composes_the_same_batches():
    program = (
        "import numpy as np; from awcl_jax.data.sampler import BatchPlan\n"
        "classes, scans = np.arange(60) % 4, np.arange(60) % 11\n"
        "for options in ({}, {'mode': 'natural'}):\n"
        "    plan = BatchPlan(classes, scans, 16, 5, pairs='cross_scan', **options)\n"
        "    print([(plan.frames(s).tolist(), plan.partners(s).tolist()) for s in (9, 2)])\n"
    )
    here = []
    for options in ({}, {"mode": "natural"}):
        plan = BatchPlan(np.arange(60) % 4, np.arange(60) % 11, 16, 5, pairs="cross_scan", **options)
        here.append(str([(plan.frames(s).tolist(), plan.partners(s).tolist()) for s in (9, 2)]))
    there = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "12"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.splitlines() == here


@quickly
@given(tables(), st.integers(2, 30), st.data())
def test_batches_are_those_of_the_slow_way(table, batch_size, data):
    options = {
        "mode": data.draw(st.sampled_from(["balanced", "balanced", "natural"])),
        "pairs": data.draw(st.sampled_from(["frame", "cross_scan"])),
        "anatomies": data.draw(st.sampled_from([None, 1, 2])),
        "units_per_class": data.draw(st.integers(2, 5)),
        "unlabelled_share": data.draw(st.sampled_from([0.0, 0.25, 0.8])),
    }
    plan = may_plan(*table, batch_size, 3, **options)
    for step in (0, 1, 40):
        np.testing.assert_array_equal(plan.frames(step), slow_plan.frames(plan, step))
        np.testing.assert_array_equal(plan.partners(step), slow_plan.partners(plan, step))
        np.testing.assert_array_equal(plan.partners(step, plan.frames(step)), plan.partners(step))


# Many frames --------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_drawn(monkeypatch):
    """Orders of more than three are drawn as those of many thousands are."""
    monkeypatch.setattr(sampler, "_DRAWN_WHOLE", 3)


@quickly
@given(tables(), st.integers(4, 30), st.integers(2, 4), st.sampled_from([0.0, 0.25]), st.integers(0, 1000))
def test_batches_of_many_units_hold_what_those_of_few_do(table, batch_size, scans_per_class, share, step):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_DRAWN_WHOLE", 3)
        plan = may_plan(*table, batch_size, 3, units_per_class=scans_per_class, unlabelled_share=share)
        frames = plan.frames(step)
        np.testing.assert_array_equal(frames, plan.frames(step))
    assert len(frames) == len(set(frames)) == batch_size
    assert lacks_other_unit(*table, frames) == []


def test_of_many_units_and_classes_all_are_drawn_equally_often(few_drawn):
    classes, units = np.arange(240) % 12, np.arange(240)  # twelve classes of twenty units each
    plan = BatchPlan(classes, units, 8, 0, anatomies=2, units_per_class=4)
    drawn = np.concatenate([plan.frames(step) for step in range(600)])
    # 4,800 draws over 240 frames: 20 of each, with a deviation of about 4.5.
    counts = np.bincount(drawn, minlength=240)
    assert 2 < counts.min() < counts.max() < 43
    for step in range(20):
        frames = plan.frames(step)
        assert np.unique(classes[frames], return_counts=True)[1].tolist() == [4, 4]


def test_a_batch_looks_at_few_of_many_frames_and_keeps_nothing(few_drawn):
    """No array as long as the data is made at a step, and memory does not grow with steps."""
    n = 200_000
    classes, units = np.arange(n) % 7 - 1, np.arange(n) // 10
    for options in ({}, {"pairs": "cross_scan"}, {"unlabelled_share": 0.5}, {"mode": "natural"}):
        plan = BatchPlan(classes, units, 16, 0, **options)
        epoch = -(-n // 16)
        for step in range(epoch, epoch + 3):
            plan.partners(step)
        tracemalloc.start()
        try:
            plan.partners(epoch + 3)
            held, peak = tracemalloc.get_traced_memory()
            assert peak < n / 4, options
            for step in range(epoch + 4, epoch + 104):
                plan.partners(step)
            assert tracemalloc.get_traced_memory()[0] < held + 4096, options
        finally:
            tracemalloc.stop()


def test_a_late_batch_does_not_depend_on_earlier_ones(few_drawn):
    classes, units = np.arange(5000) % 7 - 1, np.arange(5000) // 10
    for options in ({"pairs": "cross_scan"}, {"mode": "natural"}):
        plans = [BatchPlan(classes, units, 16, 0, **options) for _ in range(2)]
        for step in range(300, 330):
            plans[0].partners(step)
        np.testing.assert_array_equal(plans[0].frames(320), plans[1].frames(320))
        np.testing.assert_array_equal(plans[0].partners(320), plans[1].partners(320))


# Natural ------------------------------------------------------------------------------------------------------------


@quickly
@given(st.integers(2, 40), st.integers(0, 60), st.integers(0, 100))
def test_natural_order_uses_each_frame_once_an_epoch(batch_size, more, seed):
    n, epochs = batch_size + more, 5
    plan = BatchPlan(np.full(n, UNLABELLED), np.arange(n), batch_size, seed, mode="natural")
    batches = [plan.frames(step) for step in range(-(-n * epochs // batch_size))]
    stream = np.concatenate(batches)[: n * epochs].reshape(epochs, n)
    np.testing.assert_array_equal(np.sort(stream, axis=1), np.tile(np.arange(n), (epochs, 1)))
    assert [len(set(batch)) for batch in batches] == [batch_size] * len(batches)


def test_other_epochs_have_other_orders():
    plan = BatchPlan(np.full(64, UNLABELLED), np.arange(64), 16, 0, mode="natural")
    epochs = {tuple(np.concatenate([plan.frames(4 * epoch + i) for i in range(4)])) for epoch in range(10)}
    assert len(epochs) == 10


def test_a_late_epoch_costs_no_more_than_the_first():
    n = 10
    plan = BatchPlan(np.full(n, UNLABELLED), np.arange(n), 8, 0, mode="natural")
    assert len(set(plan.frames(10**9))) == 8


# Pairs --------------------------------------------------------------------------------------------------------------


@quickly
@given(tables(), st.sampled_from(["balanced", "natural"]), st.integers(0, 1000))
def test_cross_scan_partner_has_same_class_and_another_scan(table, mode, step):
    classes, units = table
    plan = may_plan(*table, 8, 3, mode=mode, pairs="cross_scan", units_per_class=2)
    for frame, partner in zip(plan.frames(step), plan.partners(step), strict=True):
        alike = [g for g in np.flatnonzero(classes == classes[frame]) if units[g] != units[frame]]
        if classes[frame] == UNLABELLED or not alike:
            assert partner == frame
        else:
            assert partner in alike


def test_partners_are_drawn_from_all_other_scans():
    plan = BatchPlan(np.zeros(8, int), np.arange(8) // 2, 8, 0, mode="natural", pairs="cross_scan")
    seen = {pair for step in range(100) for pair in zip(plan.frames(step), plan.partners(step), strict=True)}
    assert seen == {(a, b) for a, b in itertools.product(range(8), repeat=2) if a // 2 != b // 2}


def test_pairs_of_one_frame_are_the_frame_itself(table):
    plan = BatchPlan(*table, 16, 0)
    np.testing.assert_array_equal(plan.partners(4), plan.frames(4))


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"classes": np.full(20, UNLABELLED)}, "No training frame has a label"),
        ({"units": np.zeros(20, int)}, "No class has frames of two scans"),
        ({"batch_size": 21}, "larger than the 20 training frames; set sampler.batch_size to at most 20"),
        ({"batch_size": 1}, "at least 2 frames to contrast; got 1"),
        ({"units_per_class": 1}, "at least 2 to pair across scans; got 1"),
        ({"unlabelled_share": -0.1}, "from 0 to below 1; got -0.1"),
        ({"unlabelled_share": 1.0}, "from 0 to below 1; got 1.0"),
        ({"anatomies": 9}, "has 16 labelled ones, too few for 9 anatomies x 2 scans"),
        ({"anatomies": 0}, "at least 1 anatomy; got 0"),
        ({"anatomies": -1}, "at least 1 anatomy; got -1"),
        ({"mode": "fair"}, "'balanced' or 'natural'; got 'fair'"),
        ({"pairs": "twins"}, "'frame' or 'cross_scan'; got 'twins'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input_is_named_in_one_line(changed, message):
    options = {"classes": np.arange(20) % 3, "units": np.arange(20), "batch_size": 16, "seed": 0, "units_per_class": 2}
    with pytest.raises(InputError, match=message) as caught:
        BatchPlan(**(options | changed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [np.full(20, UNLABELLED), np.arange(20)], ids=["no label", "one scan each"])
def test_the_advice_changes_what_is_not_set_so_and_helps(classes):
    natural, frame = "sampler.mode='natural'", "sampler.pairs='frame'"
    for mode, pairs, advice in (
        ("balanced", "frame", natural),
        ("natural", "cross_scan", frame),
        ("balanced", "cross_scan", f"{natural} and {frame}"),
    ):
        with pytest.raises(InputError, match=rf" or use {advice} \(configs/simclr\.py\)\.$"):
            BatchPlan(classes, np.arange(20), 16, 0, mode=mode, pairs=pairs)
    BatchPlan(classes, np.arange(20), 16, 0, mode="natural", pairs="frame")


def test_natural_batches_of_one_frame_need_no_labels():
    BatchPlan(np.full(20, UNLABELLED), np.zeros(20, int), 16, 0, mode="natural")
    with pytest.raises(InputError, match="No training frame has a label"):
        BatchPlan(np.full(20, UNLABELLED), np.arange(20), 16, 0, mode="natural", pairs="cross_scan")


# Composition --------------------------------------------------------------------------------------------------------


@quickly
@given(st.integers(1, 2), st.sampled_from([(), (1,), (2,), (3,)]), st.data())
def test_composition_agrees_with_a_loop_over_all_pairs_of_anchors(views, columns, data):
    b = data.draw(st.integers(2, 14))
    m = math.prod(columns)
    drawn = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=b * m, max_size=b * m))).reshape(b, m)
    labels = np.where(drawn == UNLABELLED, UNLABELLED, drawn + 4 * np.arange(m))
    sets = [{label for label in row if label != UNLABELLED} for row in labels.tolist()]
    scans = np.array(data.draw(st.lists(st.integers(0, 4), min_size=b * views, max_size=b * views))).reshape(b, views)
    anchors = [(row, view) for row in range(b) for view in range(views)]
    positives = {a: [p for p in anchors if p != a and (p[0] == a[0] or sets[p[0]] & sets[a[0]])] for a in anchors}
    cross = {a: [p for p in positives[a] if scans[p] != scans[a]] for a in anchors}
    shared = [a for a in anchors if any(p[0] != a[0] for p in positives[a])]
    pairs = sum(map(len, positives.values()))
    expected = {
        "positives": pairs / len(anchors),
        "cross_scan": sum(map(len, cross.values())) / max(pairs, 1),
        "anatomies": sum(sum(label in of for of in sets) > 1 for label in set().union(*sets)),
        "own_view_only": 1 - len(shared) / len(anchors),
        "no_cross_scan": sum(not cross[a] for a in shared) / max(len(shared), 1),
    }
    assert composition(labels.reshape(b, *columns), scans) == pytest.approx(expected)


# Epochs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (3, 8), (8, 8), (1, 5)])
def test_every_frame_comes_once_an_epoch(n, batch_size):
    positions = 100 + 7 * np.arange(n)
    plan = EpochPlan(positions, batch_size=batch_size, seed=0)
    steps = 2 * n
    rows = np.concatenate([plan.frames(step) for step in range(steps)])
    epochs = rows[: len(rows) // n * n].reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(positions, (len(epochs), 1)))
    if n > 3:
        assert len({tuple(epoch) for epoch in epochs.tolist()}) == len(epochs)


def test_an_epochs_batches_are_a_function_of_seed_and_step():
    plan, same, other = (EpochPlan(np.arange(50), batch_size=8, seed=seed) for seed in (1, 1, 2))
    later = same.frames(1000)
    for step in (1000, 3, 0):
        plan.frames(step)
    np.testing.assert_array_equal(plan.frames(1000), later)
    assert not np.array_equal(other.frames(1000), later)
