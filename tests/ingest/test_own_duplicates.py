"""Copies are left out and counted; copies that contradict each other are never trusted."""

import json
import shutil
from pathlib import Path

import pytest

from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from tests.helpers.own_files import draw_files, moving_disc, write_video

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def run(capsys, out: Path, *args: object) -> tuple[dict[str, str], str]:
    """File -> stored anatomy, empty if it failed; and all that was printed."""
    try:
        ingest.main([*map(str, args), f"--out={out}", "--workers=1"])
    except SystemExit:
        return {}, capsys.readouterr().err
    printed, err = capsys.readouterr()
    index = ScanIndex.from_dataset(out)
    names = dict(zip(index.frame_ids.tolist(), index.fine.tolist(), strict=True))
    found = {
        Path(row["path"]).name: (*index.fine_names, "")[names[row["frame_id"]]]
        for row in read_private_table(index.path).to_pylist()
        if row["frame_id"] in names
    }
    return found, err + printed


def table(folder: Path, *rows: str) -> Path:
    """A table of files 0.png to 5.png, and of copies of 0.png, in the columns path, scan_id, patient_id, anatomy."""
    draw_files(folder, *(f"{n}.png" for n in range(6)))
    for name in ("copy1.png", "copy2.png", "copy3.png", "copy4.png"):
        shutil.copy(folder / "0.png", folder / name)
    whole = [f"{n}.png,s{n},p{n},head" for n in range(1, 6)]
    (folder / "t.csv").write_text("\n".join(["path,scan_id,patient_id,anatomy", *whole, *rows]) + "\n")
    return folder / "t.csv"


def test_copies_are_one_line_and_no_refusal(tmp_path, capsys):
    rows = ["0.png,s0,p0,head", *(f"copy{n}.png,s0,p0,head" for n in (1, 2, 3, 4))]
    source = table(tmp_path, *rows)
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert sorted(found) == [f"{n}.png" for n in range(6)]
    (line,) = [line for line in said.splitlines() if line.startswith("left out")]
    listed = "; ".join(f"row {n + 6}, 'copy{n}.png' (its frame, first in row 6)" for n in (1, 2, 3))
    assert line == f"left out 4 row(s): it repeats another frame pixel for pixel, such as {listed}"
    report = json.loads((tmp_path / "out/ingest_report.json").read_text())
    assert report["skipped"]["duplicate"]["numbers"] == [7, 8, 9, 10]
    assert "warning" not in said


@pytest.mark.parametrize(
    ("row", "differ"),
    [
        ("copy1.png,s0,p0,femur", "anatomy"),
        ("copy1.png,s9,p9,head", "patient"),
        ("copy1.png,s9,p9,femur", "anatomy and patient"),
    ],
)
def test_copies_that_contradict_each_other(tmp_path, capsys, row, differ):
    source = table(tmp_path, "0.png,s0,p0,head", row, "copy2.png,s0,p0,head")
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert not found
    assert (
        "left out row 6, '0.png': it repeats a frame that has another label or patient, so none of these can be "
        in said
    )
    assert f"trusted: its frame, also in row 7, with another {differ} (correct the labels" in said
    assert "error: 3 of 8 row(s) cannot be used" in said
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}", "--skip_bad")
    assert sorted(found) == [f"{n}.png" for n in range(1, 6)], "no copy is kept"


def test_a_copy_with_a_label_goes_before_one_without(tmp_path, capsys):
    source = table(tmp_path, "0.png,s0,p0,", "copy1.png,s0,p0,femur", "copy2.png,s0,p0,")
    found, said = run(capsys, tmp_path / "out", "manifest", f"--source={source}")
    assert found["copy1.png"] == "femur"
    assert found.keys() & {"0.png", "copy2.png"} == set()
    assert "row 6, '0.png' (its frame, kept from row 7); row 8, 'copy2.png' (its frame, first in row 7)" in said


def test_patients_who_are_a_guess_are_warned_of(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"head/p{n}/{n}.png" for n in range(5)))
    shutil.copy(tmp_path / "in/head/p0/0.png", tmp_path / "in/head/p1/copy.png")
    args = ("folder", f"--source={tmp_path / 'in'}")
    found, said = run(capsys, tmp_path / "out", *args)
    assert sorted(found) == [f"{n}.png" for n in range(5)]
    lost, kept = "file 3, 'head/p1/copy.png' (patient 'p1')", "file 1, 'head/p0/0.png' (patient 'p0')"
    assert (
        f"warning: 1 of the repeated frame(s) were of another patient than the kept one, such as {lost}, a copy of "
        f"{kept}. As patients are a guess from the first folder below the class, one patient may have two names."
    ) in said
    metadata = next((tmp_path / "out").glob("*/*/metadata.json")).read_text()
    assert "were of another patient than the kept one. As patients" in metadata, "without names"
    assert not run(capsys, tmp_path / "named", *args, "--scan_from=folder")[0], "here the user names the patients"


@pytest.mark.parametrize(
    "copies",
    [
        {"Kopie_von_P7_3.png": "P7_3.png"},
        {"Copy of P7_3.png": "P7_3.png"},
        {"Kopie_P1_0.png": "P1_0.png", "Kopie_P7_3.png": "P7_3.png"},
        # Shorter names, of a patient of whom there is nothing but copies.
        {"A_1.png": "P7_3.png", "A_2.png": "P2_0.png"},
    ],
)
def test_of_copies_the_real_patient_is_kept(tmp_path, capsys, copies):
    originals = [f"P{n}_{m}.png" for n in range(1, 9) for m in (0, 3)]
    names = draw_files(tmp_path / "in", *(f"head/{name}" for name in originals))
    for copy, of in copies.items():
        shutil.copy(names / "head" / of, names / "head" / copy)
    args = ("folder", f"--source={names}", f"--out={tmp_path / 'out'}")
    found, said = run(capsys, tmp_path / "out", *args)
    assert sorted(found) == originals
    assert len(ScanIndex.from_dataset(tmp_path / "out").patient_names) == 8
    for printed in (said, run(capsys, tmp_path / "out", *args)[1]):  # when it is prepared, and afterwards
        assert "Patients: 8 of 16 file(s) in the dataset, taken from" in printed
        assert "such as 'P1', 'P2', 'P3'. If" in printed


def test_of_copies_of_single_pictures_the_patient_with_short_names_is_kept(tmp_path, capsys):
    names = draw_files(tmp_path / "in", *(f"head/P{n}.png" for n in range(8)), "head/Kopie-P8.png")
    shutil.copy(names / "head/P7.png", names / "head/Kopie-P7.png")  # Kopie-P8 has lost its original
    found, said = run(capsys, tmp_path / "out", "folder", f"--source={names}")
    assert sorted(found) == ["Kopie-P8.png", *(f"P{n}.png" for n in range(8))]
    lost, kept = "file 1, 'head/Kopie-P7.png' (patient 'Kopie')", "file 10, 'head/P7.png' (patient 'P7')"
    assert (
        f"1 of the repeated frame(s) were of another patient than the kept one, such as {lost}, a copy of {kept}"
        in said
    )


def test_files_without_copies_and_without_frames_do_not_count(tmp_path, capsys):
    # The only picture of p0 that p1 has, too, must not be lost because another name of p0 is long, or a file damaged.
    long = "head/p0/a name that is longer than any name of a copy.png"
    names = draw_files(tmp_path / "in", *(f"head/p{n}/{n}.png" for n in range(5)), long)
    shutil.copy(names / "head/p0/0.png", names / "head/p1/copy.png")
    (names / "head/p1/e.png").write_bytes(b"")
    found, _ = run(capsys, tmp_path / "out", "folder", f"--source={names}", "--skip_bad")
    assert "0.png" in found
    assert "copy.png" not in found


def test_two_names_of_one_patient_are_not_mixed(tmp_path, capsys):
    names = draw_files(tmp_path / "in", *(f"head/P{n}_{m}.png" for n in range(8) for m in (1, 2)))
    shutil.copy(names / "head/P7_1.png", names / "head/Anna_1.png")
    shutil.copy(names / "head/P7_2.png", names / "head/Anna_2.png")
    (names / "head/P7_2.png").rename(names / "head/P7_second_frame.png")  # the longest of the four
    found, _ = run(capsys, tmp_path / "out", "folder", f"--source={names}")
    assert found.keys() & {"P7_1.png", "P7_second_frame.png", "Anna_1.png", "Anna_2.png"} == {
        "Anna_1.png",
        "Anna_2.png",
    }


@pytest.mark.parametrize(("columns", "cells"), [("path,patient_id", "P7"), ("path,split", "train")])
def test_of_copies_that_which_a_table_lists_is_kept(tmp_path, capsys, columns, cells):
    # Without the table, P7_33.png is left out because its name is longer.
    names = draw_files(tmp_path / "in", *(f"head/P{n}_33.png" for n in range(8)))
    shutil.copy(names / "head/P7_33.png", names / "head/X_3.png")
    (tmp_path / "labels.csv").write_text(f"{columns}\nP7_33.png,{cells}\n")
    args = ("folder", f"--source={names}", "--test_share=0", "--val_share=0")
    assert "X_3.png" in run(capsys, tmp_path / "without", *args)[0]
    found, said = run(capsys, tmp_path / "out", *args, f"--labels={tmp_path / 'labels.csv'}")
    assert sorted(found) == [f"P{n}_33.png" for n in range(8)]
    assert "Patients: 8 of 8 file(s) in the dataset" in said


def test_copies_of_two_patients_of_a_table_contradict_each_other_beside_files_without_one(tmp_path, capsys):
    names = draw_files(tmp_path / "in", *(f"head/P{n}_1.png" for n in range(8)))
    shutil.copy(names / "head/P7_1.png", names / "head/X_3.png")
    (tmp_path / "labels.csv").write_text("path,patient_id\nP7_1.png,seven\nX_3.png,eight\n")
    args = ("folder", f"--source={names}", f"--labels={tmp_path / 'labels.csv'}")
    found, said = run(capsys, tmp_path / "out", *args)
    assert not found
    assert "left out file 8, 'head/P7_1.png': it repeats a frame that has another label or patient" in said
    assert "trusted: its frame, also in file 9, with another patient (correct the labels" in said
    found, said = run(capsys, tmp_path / "skipped", *args, "--skip_bad")
    assert sorted(found) == [f"P{n}_1.png" for n in range(7)]
    assert "Patients: 7 of 7 file(s) in the dataset, taken from the column patient_id of --labels, or without" in said


def test_frames_that_clips_share(tmp_path, capsys):
    clips = [moving_disc(6, seed=n) for n in range(5)]
    clips[1][2:4] = clips[0][2:4]
    (tmp_path / "in").mkdir()
    for number, clip in enumerate(clips):
        write_video(tmp_path / f"in/{number}.avi", clip, "ffv1")
    args = ("video", f"--source={tmp_path / 'in'}", "--every=1", "--near_duplicate=0")
    _, said = run(capsys, tmp_path / "out", *args)
    assert (
        "left out file 2, '1.avi': it repeats another frame pixel for pixel: 2 of its 6 frames, first in file 1" in said
    )
    assert len(ScanIndex.from_dataset(tmp_path / "out")) == 28


def test_skip_bad_may_be_added_or_left_away_later(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"head/p{n}/{n}.png" for n in range(5)))
    args = ("folder", f"--source={tmp_path / 'in'}")
    assert run(capsys, tmp_path / "out", *args)[0]
    assert "is already prepared: nothing to do." in run(capsys, tmp_path / "out", *args, "--skip_bad")[1]
    (tmp_path / "in/head/p0/empty.png").write_bytes(b"")
    assert "was prepared from other files" in run(capsys, tmp_path / "out", *args, "--skip_bad")[1]
    assert run(capsys, tmp_path / "out2", *args, "--skip_bad")[0]
    assert "is already prepared: nothing to do." in run(capsys, tmp_path / "out2", *args)[1]


def test_equal_faults_of_a_table_are_one_line(tmp_path, capsys):
    draw_files(tmp_path, *(f"{n}.png" for n in range(5)))
    rows = ["0.png,s0,p0", *(f"{n}.png,s{n}," for n in range(1, 5))]
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id,patient_id", *rows]) + "\n")
    args = ("manifest", f"--source={tmp_path / 't.csv'}", "--test_share=0", "--val_share=0")
    _, said = run(capsys, tmp_path / "out", *args)
    assert (
        "left out 4 row(s): a cell of its row is empty or invalid: patient_id is empty, such as row 2, '1.png'; row 3, "
        "'2.png'; row 4, '3.png'\n"
    ) in said
