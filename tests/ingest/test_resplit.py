"""Splits that are drawn again are those of an ingest with the same draw, byte for byte."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from awcl_jax.data.about import About
from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.records import Records
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own import builder
from tests.helpers.frames import speckle

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


@pytest.fixture
def table(tmp_path) -> Path:
    """Frames with masks of 12 patients, of which every fourth shows a femur, too."""
    lines = ["path,scan_id,patient_id,anatomy,mask"]
    for number in range(36):
        patient = number % 12
        cv2.imwrite(str(tmp_path / f"{number}.png"), speckle(str(number)))
        cv2.imwrite(str(tmp_path / f"m{number}.png"), (speckle(f"m{number}") > 100).astype(np.uint8))
        anatomy = "femur" if patient % 4 == 0 and number > 11 else "head" if number % 5 else ""
        lines.append(f"{number}.png,s{patient}-{number // 24},p{patient},{anatomy},m{number}.png")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def prepare(out: Path, *args: object) -> ScanIndex:
    ingest.main([*map(str, args), f"--out={out}"])
    return ScanIndex.from_dataset(out)


def from_table(table: Path, out: Path, *args: object) -> ScanIndex:
    flags = (f"--source={table}", "--mask_names=other,head", "--workers=1")
    return prepare(out, "manifest", *flags, *args)


def files_of(index: ScanIndex) -> dict[str, bytes]:
    kinds = ("array_record", "labels.txt", "features.json")
    return {path.name: path.read_bytes() for path in sorted(index.path.iterdir()) if any(k in path.name for k in kinds)}


DRAW = ("--seed=5", "--test_share=0.3", "--val_share=0.2")


def test_it_is_what_an_ingest_with_that_draw_writes(tmp_path, table):
    was = from_table(table, tmp_path / "was", "--seed=1")
    expected = from_table(table, tmp_path / "expected", *DRAW)
    found = prepare(tmp_path / "found", "resplit", f"--dataset={tmp_path / 'was'}", *DRAW)
    assert files_of(found) == files_of(expected)
    assert found.fingerprint == expected.fingerprint != was.fingerprint
    assert [found.split_names, len(found)] == [("train", "val", "test"), 36]
    stored = [json.loads((index.path / "dataset_info.json").read_text())["splits"] for index in (found, expected)]
    assert stored[0] == stored[1]
    settings, before = (json.loads((i.path / "metadata.json").read_text())["settings"] for i in (found, expected))
    assert settings.pop("resplit") == was.fingerprint
    assert {**settings, "input": ""} == {**before, "input": ""}
    assert About.read(found.path) == About.read(expected.path)
    assert read_private_table(found.path).equals(read_private_table(was.path))


def test_records_of_many_files(tmp_path, table, monkeypatch):
    monkeypatch.setattr(builder, "_SHARD_BYTES", 8_000)
    was = from_table(table, tmp_path / "was", "--seed=1")
    assert len(list(was.path.glob("*train.array_record*"))) > 3
    found = prepare(tmp_path / "found", "resplit", f"--dataset={was.path}", *DRAW)

    def all_of(index: ScanIndex) -> dict[str, bytes]:
        records = Records(index.path)
        read = [records.read(split, at) for split in records.splits for at in range(records.count(split))]
        return {record["frame_id"].decode(): str(sorted(record.items())).encode() for record in read}

    assert all_of(found) == all_of(was)
    assert len(np.unique(np.stack([found.patients, found.splits]), axis=1).T) == 12, "no patient is in two splits"


def test_the_same_again_is_nothing_and_another_draw_is_refused(tmp_path, table, capsys):
    from_table(table, tmp_path / "was")
    args = ("resplit", f"--dataset={tmp_path / 'was'}")
    before = files_of(prepare(tmp_path / "found", *args))
    assert files_of(prepare(tmp_path / "found", *args)) == before
    assert "is already prepared: nothing to do." in capsys.readouterr().out
    for out in ("found", "was"):
        with pytest.raises(SystemExit):
            prepare(tmp_path / out, *args, "--seed=9")
        assert "exists with other splits, or of another dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        from_table(table, tmp_path / "found")
    assert "was prepared with other settings: resplit was" in capsys.readouterr().err


def test_unknown_patients_are_refused(tmp_path, table, capsys):
    was = from_table(table, tmp_path / "was")
    stored = json.loads((was.path / "metadata.json").read_text())
    args = ("resplit", f"--dataset={was.path}", "--seed=2")
    (was.path / "metadata.json").write_text(json.dumps({**stored, "patients": {"from": "names", "confirmed": False}}))
    prepare(tmp_path / "guessed", *args)
    assert "warning: Patients are a guess from names" in capsys.readouterr().out
    del stored["patients"]
    (was.path / "metadata.json").write_text(json.dumps(stored))
    with pytest.raises(SystemExit):
        prepare(tmp_path / "unknown", *args)
    assert "does not record where its patients come from" in capsys.readouterr().err
    assert not (tmp_path / "unknown").exists()
    assert len(prepare(tmp_path / "unknown", *args, "--patients_confirmed")) == 36


def test_patients_of_a_copy_are_confirmed_later_and_stay_so(tmp_path, table, capsys):
    was = from_table(table, tmp_path / "was")
    stored = json.loads((was.path / "metadata.json").read_text())
    (was.path / "metadata.json").write_text(json.dumps({**stored, "patients": {"from": "names", "confirmed": False}}))
    args = ("resplit", f"--dataset={was.path}", "--seed=2")
    copy = prepare(tmp_path / "copy", *args)
    before = files_of(copy)
    assert not About.read(copy.path).confirmed
    for flags in (("--patients_confirmed",), ()):
        capsys.readouterr()
        prepare(tmp_path / "copy", *args, *flags)
        said = capsys.readouterr().out
        assert "is already prepared: nothing to do." in said
        assert "Patients are a guess" not in said
        assert About.read(copy.path) == About("own_scans", "", "own", "names", confirmed=True, region="whole")
    assert files_of(copy) == before


def test_too_few_patients(tmp_path, table, capsys):
    from_table(table, tmp_path / "was")
    with pytest.raises(SystemExit):
        prepare(tmp_path / "found", "resplit", f"--dataset={tmp_path / 'was'}", "--test_share=0.88")
    assert "leave none for training" in capsys.readouterr().err


@pytest.fixture
def of_machines(tmp_path, table) -> ScanIndex:
    """The frames as of three machines; patients 3 and 7 have frames of two."""
    head, *lines = table.read_text().splitlines()
    machines = ["A" if number % 12 < 6 else "B" for number in range(36)]
    machines[3] = machines[7] = "C 1"
    lines = [f"{line},{machine}" for line, machine in zip(lines, machines, strict=True)]
    table.write_text("\n".join([f"{head},machine", *lines]) + "\n")
    return from_table(table, tmp_path / "was", "--seed=1")


def names_in(index: ScanIndex, split: str) -> tuple[set[str], set[str]]:
    """The patients and machines of a split."""
    there = index.splits == index.split_names.index(split)
    return (
        {index.patient_names[at] for at in index.patients[there]},
        {index.machine_names[at] for at in index.machines[there]},
    )


@pytest.mark.parametrize(("machines", "patients"), [(["C 1"], 2), (["C 1", "B"], 7)])
def test_a_machine_is_held_out_with_all_of_its_patients(tmp_path, of_machines, machines, patients):
    flags = [f"--test_machine={machine}" for machine in machines]
    found = prepare(tmp_path / "found", "resplit", f"--dataset={of_machines.path}", *flags, "--val_share=0.2")
    (train, trained_on), (val, validated_on), (test, _) = (names_in(found, split) for split in ("train", "val", "test"))
    assert len(test) == patients
    assert not (trained_on | validated_on) & set(machines)
    assert [len(val), len(train)] == [max(round(0.2 * (12 - patients)), 1), 12 - patients - len(val)]
    assert len(found) == 36
    metadata = json.loads((found.path / "metadata.json").read_text())
    assert metadata["settings"]["test_machines"] == sorted(machines)
    assert f"those with frames of {' or '.join(sorted(machines))};" in " ".join(metadata["notes"])


def test_a_machine_that_no_frame_is_of_is_named_with_those_that_are(tmp_path, of_machines, capsys):
    with pytest.raises(SystemExit, match="1"):
        prepare(tmp_path / "found", "resplit", f"--dataset={of_machines.path}", "--test_machine=C")
    said = capsys.readouterr().err
    assert "No frame is of the machine 'C'. The dataset has frames of 'A' (17), 'B' (17), 'C 1' (2)." in said
    assert not (tmp_path / "found").exists()


def test_machines_of_all_patients_leave_none_for_training(tmp_path, of_machines, capsys):
    with pytest.raises(SystemExit, match="1"):
        prepare(tmp_path / "found", "resplit", f"--dataset={of_machines.path}", "--test_machine=A", "--test_machine=B")
    assert "All patients have frames of A or B: none is left for training." in capsys.readouterr().err
