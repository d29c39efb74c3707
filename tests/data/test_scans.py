"""The index of labels: read, cached, divided by patient, told apart."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from awcl_jax.data import scans
from awcl_jax.data.scans import ScanIndex
from awcl_jax.runtime.errors import InputError
from tests.helpers.frames import frame_record

TRAIN = [
    frame_record("f1", "zoe", scan_id="z-2", anatomy_fine="trans-thalamic", anatomy_coarse="head"),
    frame_record("f0", "zoe", scan_id="z-1", anatomy_fine=-1, anatomy_coarse="head", machine="Voluson"),
    frame_record("f3", "ann", scan_id="a-1", anatomy_fine=-1, anatomy_coarse=-1),
    frame_record("f2", "zoe", scan_id="z-2", anatomy_fine="femur", anatomy_coarse="femur"),
]
TEST = [frame_record("t0", "bea", scan_id="b-1", anatomy_fine="cervix", anatomy_coarse="cervix")]

ARRAYS = [field.name for field in dataclasses.fields(ScanIndex) if "names" not in field.name and field.name != "path"]
NAMES = [field.name for field in dataclasses.fields(ScanIndex) if "names" in field.name]


def index_of(patients: int, frames: int) -> ScanIndex:
    """An index of the given number of patients with as many frames each."""
    n = patients * frames
    ids = np.arange(n, dtype=np.int32)
    names = tuple(f"patient {number}" for number in range(patients))
    whose = ids // frames
    return ScanIndex(
        path=Path("nowhere"), frame_ids=ids.astype(np.str_), scans=whose, patients=whose, machines=whose * 0,
        fine=ids % 3 - 1, coarse=ids % 2 - 1, splits=whose * 0, records=ids, scan_names=names, patient_names=names,
        machine_names=("Aloka",), fine_names=("femur", "cervix"), coarse_names=("femur",), split_names=("train",),
    )  # fmt: skip


def assert_same(one: ScanIndex, other: ScanIndex) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
    for name in NAMES:
        assert getattr(one, name) == getattr(other, name)


def test_labels_by_hand(prepare_frames):
    index = ScanIndex.from_dataset(prepare_frames(train=TRAIN, test=TEST))
    assert len(index) == 5
    assert index.frame_ids.tolist() == ["f1", "f0", "f3", "f2", "t0"]
    assert (index.scan_names, index.scans.tolist()) == (("a-1", "b-1", "z-1", "z-2"), [3, 2, 0, 3, 1])
    assert (index.patient_names, index.patients.tolist()) == (("ann", "bea", "zoe"), [2, 2, 0, 2, 1])
    assert (index.machine_names, index.machines.tolist()) == (("Aloka", "Voluson"), [0, 1, 0, 0, 0])
    assert (index.split_names, index.splits.tolist()) == (("train", "test"), [0, 0, 0, 0, 1])
    assert index.records.tolist() == [0, 1, 2, 3, 0]
    assert index.coarse_names == ("abdomen", "head", "femur", "thorax", "cervix")
    assert index.labels("coarse").tolist() == [1, 1, -1, 2, 4]
    names = [index.fine_names[fine] if fine >= 0 else None for fine in index.labels("fine")]
    assert names == ["trans-thalamic", None, None, "femur", "cervix"]
    with pytest.raises(InputError, match="'fine' or 'coarse'; got 'medium'"):
        index.labels("medium")


def test_real_labels_equal_decoded_records(real_dataset):
    index = ScanIndex.from_dataset(real_dataset)
    builder = tfds.builder_from_directory(real_dataset)
    draw = np.random.default_rng(0).choice(len(index), 40, replace=False)
    sources = {name: builder.as_data_source(name) for name in index.split_names}
    for frame in draw:
        record = sources[index.split_names[index.splits[frame]]][index.records[frame]]
        assert record["frame_id"].decode() == index.frame_ids[frame]
        assert record["patient_id"].decode() == index.patient_names[index.patients[frame]]
        assert record["scan_id"].decode() == index.scan_names[index.scans[frame]]
        assert record["machine"].decode() == index.machine_names[index.machines[frame]]
        assert (record["anatomy_fine"], record["anatomy_coarse"]) == (index.fine[frame], index.coarse[frame])


# --- cache


@pytest.fixture
def no_reading(monkeypatch):
    """A call that makes every reading of records a failure."""

    def forbid() -> None:
        monkeypatch.setattr(scans, "_read_labels", lambda *args: pytest.fail("the records were read"))

    return forbid


def test_cached_index_is_the_same_and_reads_no_record(prepare_frames, no_reading):
    path = prepare_frames(train=TRAIN, test=TEST)
    first = ScanIndex.from_dataset(path)
    no_reading()
    second = ScanIndex.from_dataset(path)
    assert_same(first, second)
    assert first.fingerprint == second.fingerprint
    assert not [file for file in path.iterdir() if file.suffix == ".part"]


def test_cache_of_other_labels_is_ignored(prepare_frames):
    path = prepare_frames("one", train=TRAIN, test=TEST)
    ScanIndex.from_dataset(path)
    # Another label of the same length, so that no file changes its size.
    changed = prepare_frames("two", train=TRAIN, test=[TEST[0] | {"anatomy_fine": "thorax"}])
    (changed / "scan_index.npz").write_bytes((path / "scan_index.npz").read_bytes())
    index = ScanIndex.from_dataset(changed)
    assert index.fine_names[index.fine[-1]] == "thorax"


@pytest.mark.parametrize("damage", [b"", b"no archive", "half", "pickle", "other"])
def test_damaged_cache_is_ignored(prepare_frames, damage):
    path = prepare_frames(train=TRAIN, test=TEST)
    cache = path / "scan_index.npz"
    right = ScanIndex.from_dataset(path)
    if damage == "half":
        cache.write_bytes(cache.read_bytes()[: cache.stat().st_size // 2])
    elif damage == "pickle":
        stored = dict(np.load(cache))
        np.savez(cache, **stored | {"frame_ids": stored["frame_ids"].astype(object)})
    elif damage == "other":
        np.savez(cache, x=np.zeros(3))
    else:
        cache.write_bytes(damage)
    assert_same(ScanIndex.from_dataset(path), right)


def test_a_dataset_that_cannot_be_written_to(prepare_frames, monkeypatch):
    path = prepare_frames(train=TRAIN, test=TEST)
    opened = Path.open

    def refuse(file, mode="r", *args, **kwargs):
        if path in file.parents and set(mode) & set("wax+"):
            raise OSError(30, "Read-only file system", str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert len(ScanIndex.from_dataset(path)) == 5
    assert not (path / "scan_index.npz").exists()


# --- which dataset


def test_a_folder_above_the_dataset(prepare_frames):
    path = prepare_frames("one", train=TRAIN, test=TEST)
    left = path.parent / "incomplete.ABC_1.0.0"  # what a killed run leaves
    left.mkdir()
    (left / "dataset_info.json").write_text("{}")
    for folder in (path, path.parent, path.parent.parent):
        assert ScanIndex.from_dataset(str(folder)).path == path


def test_no_or_several_datasets(prepare_frames, tmp_path):
    with pytest.raises(InputError, match="There is no folder"):
        ScanIndex.from_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no prepared dataset\. To"):
        ScanIndex.from_dataset(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no prepared dataset\. It is the folder of a run\. To"):
        ScanIndex.from_dataset(tmp_path)
    paths = [prepare_frames(name, train=TRAIN, test=TEST) for name in ("one", "two")]
    with pytest.raises(InputError, match=f"has 2 datasets. Use the folder of one: {paths[0]}, {paths[1]}"):
        ScanIndex.from_dataset(tmp_path)


def test_damaged_dataset(prepare_frames):
    path = prepare_frames(train=TRAIN, test=TEST)
    (records,) = path.glob("*test.array_record*")
    records.write_bytes(b"\0" * records.stat().st_size)
    with pytest.raises(InputError, match=r"Cannot read record 0 of split 'test' of .*skip_unreadable=True"):
        ScanIndex.from_dataset(path)
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="cannot be opened"):
        ScanIndex.from_dataset(path)


def test_frame_ids_are_unique(prepare_frames):
    path = prepare_frames(train=[*TRAIN, TRAIN[3]], test=TEST)
    with pytest.raises(InputError, match=r"1 frame id\(s\) more than once, the first is 'f2'"):
        ScanIndex.from_dataset(path)


@pytest.mark.parametrize("feature", ["anatomy_fine", "anatomy_coarse"])
def test_a_file_of_names_that_was_cut_is_refused(feature, prepare_frames):
    path = prepare_frames(train=TRAIN)
    file = path / f"{feature}.labels.txt"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=rf"has frames of {feature} \d+, but {feature}\.labels\.txt has 1 name"):
        ScanIndex.from_dataset(path)


def test_a_pipe_in_place_of_the_cached_index_is_not_waited_for(prepare_frames):
    path = prepare_frames(train=TRAIN)
    os.mkfifo(path / "scan_index.npz")
    with pytest.raises(InputError, match=r"scan_index\.npz is not a regular file"):
        ScanIndex.from_dataset(path)


def test_a_patient_in_two_splits_is_refused_every_time(prepare_frames):
    path = prepare_frames(train=TRAIN, test=[*TEST, frame_record("t1", "ann")])
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 patient\(s\) in several splits, the first is 'ann' in train and test"):
            ScanIndex.from_dataset(path)


# --- parts


def test_split_and_take(prepare_frames):
    index = ScanIndex.from_dataset(prepare_frames(train=TRAIN, test=TEST))
    assert index.split("test").frame_ids.tolist() == ["t0"]
    assert index.take(np.array([3, 0, 0])).frame_ids.tolist() == ["f2", "f1", "f1"]
    assert index.take(index.coarse == 1).frame_ids.tolist() == ["f1", "f0"]
    assert index.split("test").patient_names == index.patient_names, "ids mean the same in every part"
    with pytest.raises(InputError, match="no split 'val'; it has train, test"):
        index.split("val")


@pytest.mark.parametrize("marked", [[], [0], [3], [1, 2], [0, 1, 2, 3], [0, 2], [1, 3], [0, 3]])
def test_what_is_in_a_row_is_taken_without_a_copy(marked):
    index = index_of(2, 2)
    part = index.take(np.isin(np.arange(4), marked))
    assert_same(part, index.take(np.array(marked, np.int64)))
    if len(marked) > 1:
        assert np.shares_memory(part.frame_ids, index.frame_ids) == (np.ptp(marked) == len(marked) - 1)


def test_ids_are_numbered_in_code_point_order(prepare_frames, monkeypatch):
    monkeypatch.setattr(scans, "_PIECE", 2)
    patients = ["zoë", "Zoe", "\U0001f41f", "\uffee", "é", "ee", "10", "9"]
    records = [frame_record(f"{patient}-{'x' * at}", patient) for at, patient in enumerate(patients)]
    index = ScanIndex.from_dataset(prepare_frames(train=records))
    names, numbers = np.unique(np.array(patients), return_inverse=True)
    assert index.patient_names == tuple(names.tolist())
    np.testing.assert_array_equal(index.patients, numbers)
    np.testing.assert_array_equal(index.frame_ids, np.array([record["frame_id"] for record in records]))
    assert index.frame_ids.dtype == np.array([record["frame_id"] for record in records]).dtype


def test_an_index_cannot_be_written_to():
    index = index_of(2, 2)
    with pytest.raises(ValueError, match="read-only"):
        index.fine[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        index.fine = index.coarse


@pytest.mark.parametrize(("fraction", "patients"), [(0, 0), (0.001, 1), (0.1, 5), (0.25, 12), (0.9, 45)])
def test_holdout_is_by_patient(fraction, patients):
    index = index_of(50, 4)
    rest, held_out = index.holdout(fraction, seed=0)
    assert len(set(held_out.patients)) == patients
    assert not set(rest.patients) & set(held_out.patients)
    assert sorted([*rest.frame_ids, *held_out.frame_ids]) == sorted(index.frame_ids)
    assert len(held_out) == 4 * patients


def test_holdout_is_addressed_by_seed_and_patient():
    index = index_of(50, 4)
    held = {seed: set(index.holdout(0.2, seed=seed)[1].patients.tolist()) for seed in range(20)}
    assert held[0] == set(index.holdout(0.2, seed=0)[1].patients.tolist())
    assert set().union(*held.values()) == set(range(50)), "every patient has a chance"
    assert held[0] < set(index.holdout(0.4, seed=0)[1].patients.tolist())
    # Without half of the patients, none that is held out of the rest was not so before.
    fewer = index.take(index.patients < 25).holdout(0.2, seed=0)[1]
    assert set(fewer.patients.tolist()) <= set(index.holdout(0.4, seed=0)[1].patients.tolist())


def test_holdout_leaves_patients_on_both_sides():
    for fraction in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"from 0 to less than 1; got {fraction}"):
            index_of(5, 2).holdout(fraction, seed=0)
    with pytest.raises(InputError, match="leaves none for training"):
        index_of(1, 9).holdout(0.1, seed=0)


# --- fingerprint


def test_fingerprint_does_not_depend_on_the_place(prepare_frames, tmp_path):
    path = prepare_frames(train=TRAIN, test=TEST)
    shutil.copytree(path, tmp_path / "elsewhere")
    assert ScanIndex.from_dataset(path).fingerprint == ScanIndex.from_dataset(tmp_path / "elsewhere").fingerprint


def test_fingerprint_stays():
    # Computed once with this code (SHA-256 over names and ids as JSON and labels as little-endian int32). Checkpoints
    # store it, so that it may change only with a deliberate change of what it is made of.
    assert index_of(2, 3).fingerprint == "ea98d60d30e9920e"


@pytest.mark.parametrize("frames", [0, 1, 4, 5, 12])
def test_fingerprint_does_not_depend_on_the_piece_size(frames, monkeypatch):
    monkeypatch.setattr(scans, "_PIECE", 4)
    index = index_of(12, 1).take(np.arange(frames))
    digest = hashlib.sha256()
    for name in scans._NAMES:
        digest.update(json.dumps([name, getattr(index, name)]).encode())
    digest.update(json.dumps(index.frame_ids.tolist()).encode())
    for name in ("scans", "patients", "machines", "fine", "coarse", "splits"):
        digest.update(getattr(index, name).astype("<i4").tobytes())
    assert index.fingerprint == digest.hexdigest()[:16]


@pytest.mark.parametrize("name", [*ARRAYS, *NAMES])
def test_fingerprint_tells_every_label(name):
    index = index_of(3, 2)
    value = getattr(index, name)
    changed = value[::-1] if isinstance(value, np.ndarray) else tuple(f"{text}!" for text in value)
    same = dataclasses.replace(index, **{name: changed}).fingerprint == index.fingerprint
    # Machines and splits are all one here, reversed the same; a record's position says nothing of what the frame is.
    assert same == (name in ("machines", "splits", "records"))


def test_no_picture_is_looked_at(prepare_frames):
    path = prepare_frames(train=[frame_record(f"f{number}", image=b"no picture") for number in range(3)])
    assert len(ScanIndex.from_dataset(path)) == 3
