"""The frames that a run trains on, and the labels of its loss."""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.selection import (
    Split,
    Splits,
    anatomies_in_batches,
    counts,
    describe,
    keep_label_fraction,
    make_plan,
    more_unlabelled,
    nothing_apart,
    positive_labels,
    select,
)
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record

pytestmark = pytest.mark.quick

SAMPLER = {
    "batch_size": 8,
    "seed": 0,
    "mode": "balanced",
    "anatomies": None,
    "scans_per_anatomy": 2,
    "unlabelled_share": 0.0,
    "pairs": "frame",
}


@pytest.fixture
def index():
    """40 frames of 10 scans; fine anatomies 0 to 3, of coarse 0 and 1; the last 8 frames without a label."""
    n = 40
    numbers = np.arange(n, dtype=np.int32)
    fine = np.where(numbers < 32, numbers % 4, UNLABELLED).astype(np.int32)
    return ScanIndex(
        path=Path("/data"),
        frame_ids=np.array([f"f{i}" for i in range(n)]),
        scans=numbers // 4,
        patients=numbers // 8,
        machines=np.zeros(n, np.int32),
        fine=fine,
        coarse=np.where(fine == UNLABELLED, UNLABELLED, fine // 2).astype(np.int32),
        splits=np.zeros(n, np.int32),
        records=numbers,
        scan_names=tuple(f"s{i}" for i in range(10)),
        patient_names=tuple(f"p{i}" for i in range(5)),
        machine_names=("Aloka",),
        fine_names=("a", "b", "c", "d"),
        coarse_names=("x", "y"),
        split_names=("train",),
    )


def labels_of(index, positives="anatomy", granularity="fine", anatomy_ratio=1.0, seed=0):
    return positive_labels(index, positives, granularity=granularity, anatomy_ratio=anatomy_ratio, seed=seed)


def test_positives_are_an_anatomy_a_scan_or_the_frame_itself(index):
    np.testing.assert_array_equal(labels_of(index), index.fine)
    np.testing.assert_array_equal(labels_of(index, granularity="coarse"), index.coarse)
    np.testing.assert_array_equal(labels_of(index, "scan"), index.scans)
    np.testing.assert_array_equal(labels_of(index, "frame"), np.full(40, UNLABELLED))


def test_one_label_tells_no_frames_apart():
    one, none = np.zeros(7, np.int32), np.full(3, UNLABELLED)
    assert nothing_apart(one).startswith(
        "all 7 training frames with a label have the same, so the loss pulls all of them"
    )
    assert "and pushes none apart" in nothing_apart(one)
    assert "together apart from the 3 without a label alone" in nothing_apart(np.concatenate([none, one]))
    assert nothing_apart(none) == nothing_apart(np.concatenate([one, one + 1])) == ""


def test_two_labels_tell_no_frames_apart_if_each_is_the_same_in_all():
    def both(fine, coarse):
        return np.stack([fine, coarse], axis=1)

    one, none, some = np.zeros(7, np.int32), np.full(7, UNLABELLED), np.array([0, 0, 0, 1, 1, 2, 2])
    assert nothing_apart(both(one, one + 5)).startswith("all 7 training frames with a label have the same, so")
    assert "apart from the 7 without" in nothing_apart(np.concatenate([both(one, one + 5), both(none, none)]))
    # A column in which frames differ, or each is alone, pushes them apart.
    for apart in (both(some, one + 5), both(none, one + 5), both(np.where(some == 2, UNLABELLED, 0), one + 5)):
        assert nothing_apart(apart) == ""
    assert nothing_apart(both(none, none)) == ""


def few_scans(anatomies: int, scans: int) -> tuple[np.ndarray, np.ndarray]:
    """Label and scan of 100 frames of each anatomy, in so many scans, and of 1,000 unlabelled frames of another."""
    labels = np.concatenate([np.repeat(np.arange(anatomies), 100), np.full(1000, UNLABELLED)])
    return labels, np.concatenate([scans * labels[:-1000] + np.arange(100 * anatomies) % scans, np.full(1000, 999)])


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_batches_with_more_unlabelled_frames_than_asked_for_are_noticed(share):
    labels, scans = few_scans(anatomies=2, scans=3)

    def told(batch_size, scans=scans, labels=labels, **options):
        options = {"units_per_class": 3, "unlabelled_share": share} | options
        return more_unlabelled(labels, BatchPlan(labels, scans, batch_size, 0, **options))

    # Six of 32 frames have a label: one of each scan of both anatomies.
    text = told(32)
    assert text.startswith(f"81% of the frames of a batch have no label, not sampler.unlabelled_share={share:g}: its")
    assert "or more sampler.anatomies" not in text
    size = int(re.search(r"batch_size of about (\d+), ", text)[1])
    assert size == {0.0: 6, 0.25: 8}[share]
    assert told(size) == ""
    # Two other remedies: more scans of each anatomy, more anatomies in a batch.
    assert told(32, *few_scans(2, 40)[::-1]) == ""
    labels, scans = few_scans(anatomies=8, scans=4)
    assert "or more sampler.anatomies" in told(32, scans, labels, anatomies=2)
    assert told(32, scans, labels, anatomies=8) == ""


def test_unlabelled_frames_are_counted_where_a_share_of_them_is_planned():
    labels, scans = few_scans(anatomies=2, scans=3)
    assert more_unlabelled(labels, BatchPlan(labels, scans, 32, 0, mode="natural")) == ""
    # A frame with a coarse label alone has a label in the loss.
    both = np.stack([labels, np.full(labels.size, 9)], axis=1)
    assert more_unlabelled(both, BatchPlan(labels, scans, 32, 0, units_per_class=3)) == ""
    # Fewer than asked for, since there are no more.
    assert more_unlabelled(labels[:200], BatchPlan(labels[:200], scans[:200] % 50, 6, 0, unlabelled_share=0.3)) == ""


def test_frames_with_a_coarse_label_alone_count_as_labelled(index):
    coarse = np.where(np.arange(40) < 36, 0, UNLABELLED).astype(np.int32)
    part = Split(dataclasses.replace(index, coarse=coarse), FrameReader.__new__(FrameReader))  # not read
    found = counts(Splits("", train=part, val=part, test=part))
    assert found["train"] == {"frames": 40, "labelled": 36, "scans": 10, "patients": 5}


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.25, 8), (0.5, 16), (1.0, 32)])
def test_the_anatomy_ratio_is_a_share_of_the_labelled_frames(index, ratio, count):
    labels = labels_of(index, anatomy_ratio=ratio)
    kept = labels != UNLABELLED
    assert kept.sum() == count
    np.testing.assert_array_equal(labels[kept], index.fine[kept])


def test_the_anatomy_ratio_is_drawn_by_the_seed(index):
    drawn = [labels_of(index, anatomy_ratio=0.5, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_scans_and_frames_need_no_anatomy(index):
    assert (labels_of(index, "scan", anatomy_ratio=0.0) == index.scans).all()


def test_unknown_positives_are_named(index):
    with pytest.raises(InputError, match="'anatomy', 'scan' or 'frame'; got 'plane'"):
        labels_of(index, "plane")


def test_batches_by_anatomy_hold_distinct_scans_of_each(index):
    labels = labels_of(index)
    plan = make_plan(index, labels, "anatomy", **SAMPLER)
    for step in range(5):
        frames = plan.frames(step)
        for anatomy in range(4):
            scans = index.scans[frames[labels[frames] == anatomy]]
            assert len(scans) == len(set(scans)) == 2


def test_anatomies_in_batches_are_counted(index):
    plan = make_plan(index, labels_of(index), "anatomy", **SAMPLER)
    told = anatomies_in_batches(index, plan, steps=3)
    assert told["anatomies"] == [*index.fine_names, "unlabelled"]
    for found, frames in (
        (told["training_frames"], range(len(index))),
        (told["drawn"], [frame for step in range(3) for frame in plan.frames(step)]),
    ):
        expected = dict.fromkeys(told["anatomies"], 0)
        for frame in frames:
            expected[index.fine_names[index.fine[frame]] if index.fine[frame] >= 0 else "unlabelled"] += 1
        assert dict(zip(told["anatomies"], found, strict=True)) == expected


@pytest.mark.parametrize("granularity", ["fine", "both"])
@pytest.mark.parametrize("composed", [{}, {"mode": "natural", "pairs": "cross_scan"}], ids=["balanced", "cross"])
def test_coarse_labels_alone_need_the_coarse_granularity(index, granularity, composed):
    index = dataclasses.replace(index, fine=np.full(40, UNLABELLED, np.int32))
    with pytest.raises(InputError, match=r"32 have a coarse one: set config\.granularity='coarse', with"):
        make_plan(index, labels_of(index, granularity=granularity), "anatomy", **SAMPLER | composed)
    make_plan(index, labels_of(index, granularity="coarse"), "anatomy", **SAMPLER | composed)
    natural = SAMPLER | {"mode": "natural"}
    assert make_plan(index, labels_of(index, granularity=granularity), "anatomy", **natural).frames(0).size == 8


def test_labels_that_are_withheld_need_a_higher_ratio(index):
    for granularity in ("fine", "coarse", "both"):
        labels = labels_of(index, granularity=granularity, anatomy_ratio=0.0)
        with pytest.raises(InputError, match=r"No training frame has a label.* raise the anatomy ratio"):
            make_plan(index, labels, "anatomy", **SAMPLER)


def test_batches_by_scan_hold_distinct_frames_of_each(index):
    plan = make_plan(index, labels_of(index, "scan"), "scan", **SAMPLER)
    for step in range(5):
        frames = plan.frames(step)
        assert len(set(frames)) == 8
        assert np.unique(index.scans[frames], return_counts=True)[1].tolist() == [2, 2, 2, 2]


# Prepared datasets --------------------------------------------------------------------------------------------------


def records_of(*patients: str) -> list[dict]:
    """Three frames of each patient, the last without a label."""
    return [
        frame_record(f"{patient}{i}", patient, scan_id=f"{patient}-{i // 2}", anatomy_fine=label, anatomy_coarse=label)
        for patient in patients
        for i, label in enumerate(("femur", "abdomen", UNLABELLED))
    ]


def chosen(selection) -> dict[str, set[str]]:
    """The patients of every part."""
    parts = {name: getattr(selection, name).index for name in ("train", "val", "test")}
    return {name: {index.patient_names[p] for p in index.patients} for name, index in parts.items()}


def select_from(folder, **options):
    return select(folder, **({"size": 16, "cache_mb": 1, "val_share": 0.25, "seed": 0} | options))


def test_the_datasets_own_validation_split_is_taken(prepare_frames):
    folder = prepare_frames(train=records_of("a", "b"), val=records_of("c"), test=records_of("d"))
    selection = select_from(folder)
    assert chosen(selection) == {"train": {"a", "b"}, "val": {"c"}, "test": {"d"}}
    assert selection.fingerprint == ScanIndex.from_dataset(folder).fingerprint


def test_without_one_training_patients_are_held_out(prepare_frames):
    folder = prepare_frames(train=records_of(*"abcdefgh"), test=records_of("y", "z"))
    parts = chosen(select_from(folder))
    assert (len(parts["train"]), len(parts["val"]), parts["test"]) == (6, 2, {"y", "z"})
    assert parts["train"] | parts["val"] == set("abcdefgh")
    for one, other in itertools.combinations(parts.values(), 2):
        assert not one & other
    assert chosen(select_from(folder)) == parts
    assert any(chosen(select_from(folder, seed=seed)) != parts for seed in (1, 2, 3))
    assert select_from(folder, seed=1).fingerprint == select_from(folder).fingerprint


def test_each_part_reads_its_own_frames(prepare_frames):
    folder = prepare_frames(train=records_of(*"abcd"), test=records_of("y"))
    selection = select_from(folder, size=24)
    everything = select_from(folder, size=24, val_share=0.5)
    pictures = {}
    for part in (everything.train, everything.val, everything.test):
        images = part.reader.read(np.arange(len(part.index)))
        pictures |= dict(zip(part.index.frame_ids.tolist(), images, strict=True))
    for part in (selection.train, selection.val, selection.test):
        images = part.reader.read(np.arange(len(part.index)))
        assert images.shape == (len(part.index), 24, 24)
        for frame_id, image in zip(part.index.frame_ids.tolist(), images, strict=True):
            np.testing.assert_array_equal(image, pictures[frame_id])
    assert len({image.tobytes() for image in pictures.values()}) == 15


def test_frames_of_other_datasets_are_trained_on_without_labels(prepare_frames):
    first = prepare_frames(train=records_of(*"abcd"), test=records_of("y"))
    others = [
        prepare_frames("b", train=records_of("a", "z"), test=records_of("x")),
        prepare_frames("c", train=records_of("p")),
    ]
    alone, joined = select_from(first), select_from(first, unlabelled=[str(folder) for folder in others])
    count, index = len(alone.train.index), joined.train.index
    assert len(index) == count + 9
    np.testing.assert_array_equal(index.fine[:count], alone.train.index.fine)
    for labels in (index.fine, index.coarse):
        assert (labels[count:] == UNLABELLED).all()
    # The patient a of one dataset is not the patient a of another, and nobody's test frames are there.
    names = [index.patient_names[p] for p in index.patients]
    assert len({name.rpartition("/")[2] for name in names[count:]}) == 3
    assert not set(index.patients[:count]) & set(index.patients[count:])
    assert not set(index.scans[:count]) & set(index.scans[count:])
    pictures = [alone.train.reader.read(np.arange(count))]
    for folder in others:
        part = ScanIndex.from_dataset(folder).split("train")
        pictures.append(FrameReader(part, 16).read(np.arange(len(part))))
    backwards = np.arange(len(index))[::-1]
    np.testing.assert_array_equal(joined.train.reader.read(backwards), np.concatenate(pictures)[::-1])
    for name in ("val", "test"):
        np.testing.assert_array_equal(getattr(joined, name).index.frame_ids, getattr(alone, name).index.frame_ids)
    assert len({joined.fingerprint, alone.fingerprint, select_from(first, unlabelled=others[:1]).fingerprint}) == 3
    assert joined.fingerprint.startswith(alone.fingerprint)


def test_a_dataset_that_is_given_twice_is_refused(prepare_frames):
    first = prepare_frames(train=records_of(*"abcd"), test=records_of("y"))
    other = prepare_frames("other", train=records_of("z"))
    for unlabelled in ([first], [other, other]):
        with pytest.raises(InputError, match=r"listed twice"):
            select_from(first, unlabelled=unlabelled)


@pytest.mark.parametrize("on", [False, True])
def test_every_part_masks_overlays_or_none(prepare_frames, on):
    selection = select_from(prepare_frames(train=records_of(*"abcd"), test=records_of("y")), mask_overlays=on)
    assert [part.reader.mask_overlays for part in (selection.train, selection.val, selection.test)] == [on] * 3


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_dataset_without_train_or_test_is_refused(prepare_frames, missing):
    splits = {name: records_of(name) for name in ("train", "test", "other") if name != missing}
    with pytest.raises(InputError, match=f"has no split '{missing}'"):
        select_from(prepare_frames(**splits))


def test_one_training_patient_is_too_few_to_hold_one_out(prepare_frames):
    with pytest.raises(InputError, match="leaves none for training"):
        select_from(prepare_frames(train=records_of("a"), test=records_of("b")))


def test_the_description_counts_frames_labels_scans_and_patients(prepare_frames):
    folder = prepare_frames(train=records_of("a", "b"), val=records_of("c"), test=records_of("d"))
    title, *lines = describe(select_from(folder)).splitlines()
    assert str(folder) in title
    # Of every patient: three frames, two of them labelled, in two scans.
    assert [" ".join(line.split()) for line in lines] == [
        "frame_set (prepared by another program)",
        "train 6 frames, 4 of them labelled, 4 scans of 2 patients",
        "val 3 frames, 2 of them labelled, 2 scans of 1 patients",
        "test 3 frames, 2 of them labelled, 2 scans of 1 patients",
        "The dataset does not record where its patients come from: one patient may be in two splits.",
    ]


# Label fractions ----------------------------------------------------------------------------------------------------


def test_label_fractions_are_nested_and_have_every_class():
    strata = np.random.default_rng(0).choice(5, size=300, p=(0.6, 0.3, 0.05, 0.04, 0.01))
    kept = {share: keep_label_fraction(strata, share, seed=3) for share in (0.02, 0.1, 0.5, 1.0)}
    assert {share: positions.size for share, positions in kept.items()} == {0.02: 6, 0.1: 30, 0.5: 150, 1.0: 300}
    for less, more in itertools.pairwise(kept.values()):
        assert set(less.tolist()) < set(more.tolist())
    for positions in kept.values():
        assert set(strata[positions].tolist()) == set(range(5))
        assert (np.diff(positions) > 0).all()
    np.testing.assert_array_equal(kept[0.1], keep_label_fraction(strata, 0.1, seed=3))
    assert not np.array_equal(kept[0.1], keep_label_fraction(strata, 0.1, seed=4))


def test_too_low_label_fraction_error_suggests_one_that_works():
    strata = np.arange(300) % 7
    with pytest.raises(InputError, match=r"0.01 keeps 3 of 300 training frames, fewer than the 7 classes") as caught:
        keep_label_fraction(strata, 0.01, seed=0)
    enough = float(str(caught.value).rpartition("at least ")[2].rstrip("."))
    assert keep_label_fraction(strata, enough, seed=0).size >= 7


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_a_label_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(InputError, match="must be above 0 and at most 1; got"):
        keep_label_fraction(np.arange(3), fraction, seed=0)
