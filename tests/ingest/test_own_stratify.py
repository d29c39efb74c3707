"""Every split shows every anatomy where there are patients for it; what one split lacks is reported."""

import hashlib
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import command as own
from awcl_jax.ingest.own.plan import draw_splits
from awcl_jax.ingest.own.stratify import stratify
from tests.helpers.own_files import draw_files

pytestmark = pytest.mark.quick

A, B, C = (0, 0), (1, 0), (2, 1)
SHARES = {"val_share": 0.1, "test_share": 0.2, "seed": 0}


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def splits_showing(splits, shown, kind):
    return Counter(split for patient, split in splits.items() if kind in shown.get(patient, ()))


@pytest.mark.parametrize("shown", [{}, {f"p{n}": {A, B} for n in range(30)}])
def test_patients_that_show_the_same_are_drawn_as_before(shown):
    patients = [f"p{n}" for n in range(30)]
    drawn = sorted(patients, key=lambda patient: hashlib.sha256(f"0:{patient}".encode()).hexdigest())
    expected = dict(zip(drawn, ["test"] * 6 + ["val"] * 3 + ["train"] * 21, strict=True))
    assert draw_splits(set(patients), shown, **SHARES) == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_third_labelled_is_in_every_split(seed):
    # Of 30 patients 10 are labelled: 0.2 and 0.1 of them are 2 and 1, however the other 20 are drawn.
    patients = [f"p{n}" for n in range(30)]
    shown = {patient: {A} for patient in random.Random(seed).sample(patients, 10)}
    splits = draw_splits(set(patients), shown, **SHARES | {"seed": seed})
    assert splits_showing(splits, shown, A) == {"train": 7, "test": 2, "val": 1}
    assert Counter(splits.values()) == {"train": 21, "test": 6, "val": 3}


@pytest.mark.parametrize("seed", range(30))
def test_no_dealing_shows_more_anatomies_of_few_patients(seed):
    # The oracle deals seven patients in every way that has the same sizes.
    rng = random.Random(seed)
    order = [f"p{n}" for n in range(7)]
    shown = {patient: set(rng.sample([A, B, C], rng.randint(0, 3))) for patient in order}

    def score(splits):
        return sum(len(splits_showing(splits, shown, kind)) for kind in (A, B, C))

    best = 0
    for test in itertools.combinations(order, 2):
        for val in itertools.combinations([p for p in order if p not in test], 1):
            splits = {p: "test" if p in test else "val" if p in val else "train" for p in order}
            best = max(best, score(splits))
    found = stratify(order, shown, test=2, val=1)
    assert Counter(found.values()) == {"train": 4, "test": 2, "val": 1}
    assert best - score(found) == (seed in (16, 21))  # exchanges of two patients miss one there


def test_the_draw_depends_on_the_ids_alone():
    patients = [f"p{n}" for n in range(12)]
    shown = {f"p{n}": {A} if n % 3 else {B, C} for n in range(9)}
    first = draw_splits(set(patients), shown, **SHARES)
    assert draw_splits(set(patients), dict(reversed(shown.items())), **SHARES) == first
    assert draw_splits(set(patients), shown, **SHARES | {"seed": 1}) != first


def table(folder, labels):
    """A table of a picture a patient, with its anatomy."""
    names = [f"{number}.png" for number in range(len(labels))]
    draw_files(folder, *names)
    rows = [f"{name},s{at},p{at},{label}" for at, (name, label) in enumerate(zip(names, labels, strict=True))]
    (folder / "scans.csv").write_text("\n".join(["path,scan_id,patient_id,anatomy", *rows]) + "\n")
    return folder / "scans.csv"


def prepare(capsys, source, out):
    ingest.main(["manifest", f"--source={source}", f"--out={out}", "--workers=1"])
    return ScanIndex.from_dataset(out), capsys.readouterr().out


def test_a_prepared_dataset_has_labels_in_all_splits(tmp_path, capsys):
    index, printed = prepare(capsys, table(tmp_path, ["femur"] * 5 + [""] * 10), tmp_path / "out")
    labelled = index.split_names, np.bincount(index.splits[index.fine >= 0], minlength=3)
    assert dict(zip(*labelled, strict=True)) == {"train": 3, "val": 1, "test": 1}
    assert "warning" not in printed


def test_what_a_split_lacks_is_reported(tmp_path, capsys):
    _, printed = prepare(capsys, table(tmp_path, ["femur"] * 8 + ["head", "spine", "spine"]), tmp_path / "out")
    assert "warning: val shows no head (of 1 patient(s) in all), spine (of 2 patient(s) in all). Label more" in printed
    assert "warning: test shows no head (of 1 patient(s) in all). Label more" in printed
    assert "warning: train" not in printed
    _, printed = prepare(capsys, table(tmp_path / "one", ["femur"] + [""] * 9), tmp_path / "one" / "out")
    assert "warning: test has no labelled frame, so a run cannot score" in printed


def test_a_dataset_from_before_keeps_its_splits(tmp_path, capsys, monkeypatch):
    source = table(tmp_path, ["femur"] * 3 + [""] * 9)
    with monkeypatch.context() as patched:
        patched.setattr(own, "_is_from_before", lambda *_: True)
        before, _ = prepare(capsys, source, tmp_path / "out")
    after, printed = prepare(capsys, source, tmp_path / "out")
    assert "already prepared: nothing to do" in printed
    assert after.fingerprint == before.fingerprint
    # What is prepared now is not what was drawn then.
    assert prepare(capsys, source, tmp_path / "new")[0].fingerprint != before.fingerprint
