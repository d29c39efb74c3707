"""What is taken for a patient is reported with examples and stored; a guess is never called more than that."""

import json
import re

import numpy as np
import pytest

from awcl_jax.data.about import About
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own.dicom import read_ids
from tests.helpers.own_files import draw_files, moving_disc, write_dicom, write_video

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def prepared(capsys, *args):
    """What the dataset says of itself, its number of patients, and the line on patients."""
    ingest.main([*map(str, args), "--workers=1"])
    (line,) = re.findall(r"^Patients: .*$", capsys.readouterr().out, re.MULTILINE)
    out = next(str(arg).removeprefix("--out=") for arg in args if str(arg).startswith("--out="))
    index = ScanIndex.from_dataset(out)
    return About.read(index.path), len(index.patient_names), line


NUMBERED = [f"A/frame{number:04d}.png" for number in range(8)]
NAMED = [f"A/IMG_p{number // 2}_{number}.png" for number in range(8)]
FOLDERS = [f"A/p{number // 2}/{number}.png" for number in range(8)]


@pytest.mark.parametrize(
    ("names", "flags", "patients", "source", "confirmed"),
    [
        (NUMBERED, (), 8, "the beginning of the file's name, up to the first - or _, such as 'frame0000', ", False),
        (NUMBERED, ("--patients_confirmed",), 8, "the beginning of the file's name", True),
        (
            NAMED,
            (r"--pattern=IMG_(?P<patient>p\d)",),
            4,
            "the group (?P<patient>...) of --pattern, such as 'p0', 'p1'",
            True,
        ),
        (
            NAMED,
            (r"--pattern=IMG_(?P<scan>p\d)",),
            4,
            "the group (?P<scan>...) of --pattern, such as 'p0', 'p1'",
            False,
        ),
        (FOLDERS, (), 4, "the first folder below the class, such as 'p0', 'p1', 'p2'.", False),
        (  # not the folders, which are dates
            [f"A/2021-0{number % 4 + 1}/p{number // 2}_{number}.png" for number in range(8)],
            (r"--pattern=(?P<patient>p\d)_(?P<scan>\d)",),
            4,
            "the group (?P<patient>...) of --pattern, such as 'p0', 'p2', 'p1'",
            True,
        ),
        (FOLDERS, ("--scan_from=folder",), 4, "the first folder below the class, such as", True),
    ],
)
def test_pictures(tmp_path, capsys, names, flags, patients, source, confirmed):
    folder = draw_files(tmp_path / "in", *names)
    about, count, line = prepared(capsys, "folder", f"--source={folder}", f"--out={tmp_path / 'out'}", *flags)
    assert count == patients
    assert line.startswith(f"Patients: {patients} of 8 file(s) in the dataset, taken from {source}")
    assert about.confirmed == confirmed
    assert ("--patients_confirmed" in line) != confirmed
    assert ("each patient is in one split only" in about.apart.lower()) == confirmed
    metadata = next((tmp_path / "out").glob("*/*/metadata.json")).read_text()
    assert not re.search(r"frame0|IMG|'p0'", metadata)  # examples name files


def test_scan_ids_that_begin_anew_for_each_patient(tmp_path, capsys):
    source = draw_files(tmp_path / "in", *(f"p{patient}/{scan}.png" for patient in range(6) for scan in (1, 2)))
    rows = [f"p{patient}/{scan}.png,4CH,{scan}" for patient in range(6) for scan in (1, 2)]
    (tmp_path / "t.csv").write_text("\n".join(["path,anatomy,scan_id", *rows]))
    args = ("folder", f"--source={source}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    with pytest.raises(SystemExit):
        ingest.main([*args, "--workers=1"])
    said = capsys.readouterr().err
    assert "left out file 3, 'p1/1.png': its scan is also one of another patient: see file 1 (a table can give " in said
    assert "10 file(s) cannot be used, as listed above." in said.splitlines()[-1]


def test_an_examination_with_two_patient_ids(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number in range(8):  # two files of each examination, the last with two ids
        patient = f"p{number // 2}" + "b" * (number == 7)
        clip = moving_disc(1, seed=number)
        write_dicom(tmp_path / f"in/{number}.dcm", clip, patient=patient, study=f"1.{number // 2}")
    args = ("dicom", f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--region=whole")
    with pytest.raises(SystemExit):
        ingest.main([*args, "--workers=1"])
    said = capsys.readouterr().err
    assert re.search(r"left out file 8, id \w+: its scan is also one of another patient: see file 7 ", said)
    assert "p3" not in said
    assert prepared(capsys, *args, "--skip_bad")[1] == 4
    # A table says whose it is.
    (tmp_path / "t.csv").write_text("path,patient_id\n6.dcm,p3\n")
    assert prepared(capsys, *args, f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'other'}")[1] == 4


@pytest.mark.parametrize("skip", [(), ("--skip_bad",)])
def test_what_was_left_out_is_listed_before_patients_that_cannot_be_split(tmp_path, capsys, skip):
    draw_files(tmp_path, "0.png")
    (tmp_path / "t.csv").write_text("\n".join(["path,scan_id", *(f"{number}.png,s{number}" for number in range(4))]))
    with pytest.raises(SystemExit):
        ingest.main(["manifest", f"--source={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}", *skip])
    *listed, error = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in listed] == [f"left out row {n + 1}, '{n}.png'" for n in (1, 2, 3)]
    assert error.startswith("error: 1 patient(s) cannot be split")
    assert "3 row(s) cannot be used, as listed above." in error


def test_patients_that_differ_only_in_case_are_noticed(tmp_path, monkeypatch, capsys):
    draw_files(tmp_path / "in", *(f"A/{name}/{name}.png" for name in ("p1", "P1", "p2", "p3", "p4")))
    args = (f"--source={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", "--workers=1")
    ingest.main(["folder", *args])
    expected = "warning: 2 patients differ from others only in case and are different ones"
    assert f"{expected}, such as 'P1' and 'p1'. Use one spelling" in capsys.readouterr().err
    assert "only in case" not in next((tmp_path / "out").glob("*/*/metadata.json")).read_text()
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number, name in enumerate(("Mary", "mary", "p2", "p3")):
        write_dicom(tmp_path / f"dicom/{number}.dcm", moving_disc(1, seed=number), patient=name, study=f"1.{number}")
    ingest.main(["dicom", f"--source={tmp_path / 'dicom'}", f"--out={tmp_path / 'out2'}", "--workers=1"])
    said = capsys.readouterr().err
    assert f"{expected}. Use one spelling" in said
    assert "mary" not in said.lower()


def test_an_id_of_dicom_is_the_same_however_its_accents_are_composed(tmp_path):
    files = [
        write_dicom(tmp_path / f"{at}.dcm", moving_disc(1), patient=name, SpecificCharacterSet="ISO_IR 192")
        for at, name in enumerate(("M\u00fcller", "Mu\u0308ller"))
    ]
    assert {read_ids(path)[0] for path in files} == {"M\u00fcller"}


def test_a_pattern_is_never_ignored(tmp_path, capsys):
    folder = draw_files(tmp_path / "in", *FOLDERS)
    args = ("folder", f"--source={folder}", f"--out={tmp_path / 'out'}")
    with pytest.raises(SystemExit):
        ingest.main([*args, "--scan_from=folder", r"--pattern=(?P<patient>\d)"])
    assert "--scan_from=folder takes scans from folders. Omit one of them." in capsys.readouterr().err


def test_one_patient_for_all_is_refused_with_its_cause(tmp_path, capsys):
    folder = draw_files(tmp_path / "in", *NAMED)
    with pytest.raises(SystemExit):
        ingest.main(["folder", f"--source={folder}", f"--out={tmp_path / 'out'}", "--workers=1"])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "1 patient(s) cannot be split" in error
    assert "taken from the beginning of the file's name, up to the first - or _, such as 'IMG'. If that" in error
    assert "use --pattern with a group (?P<patient>...)" in error
    assert "--patients_confirmed" not in error  # which would not help


def test_a_guess_is_confirmed_later_and_stays_so(tmp_path, capsys):
    args = ("folder", f"--source={draw_files(tmp_path / 'in', *FOLDERS)}", f"--out={tmp_path / 'out'}")
    assert not prepared(capsys, *args)[0].confirmed
    folder = next((tmp_path / "out").glob("*/1.0.0"))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metadata.json"}
    assert prepared(capsys, *args, "--patients_confirmed")[0].confirmed
    about, _, line = prepared(capsys, *args)
    assert about.confirmed
    assert "--patients_confirmed" not in line
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metadata.json"} == before


@pytest.mark.parametrize(("columns", "confirmed"), [("path,scan_id,patient_id", True), ("path,scan_id", False)])
def test_tables(tmp_path, capsys, columns, confirmed):
    draw_files(tmp_path, *FOLDERS)
    rows = [f"{name},s{at},{name.split('/')[1]}"[: None if confirmed else -3] for at, name in enumerate(FOLDERS)]
    (tmp_path / "table.csv").write_text("\n".join([columns, *rows]) + "\n")
    about, count, line = prepared(capsys, "manifest", f"--source={tmp_path / 'table.csv'}", f"--out={tmp_path / 'out'}")
    assert (count, about.confirmed) == ((4, True) if confirmed else (8, False))
    expected = "the column patient_id, such as 'p0'" if confirmed else "each scan (scan_id), such as 's0'"
    assert f"taken from {expected}" in line


@pytest.mark.parametrize(
    ("more", "frames"),
    [
        ([], [3, 3, 3, 3, 3]),
        # A folder whose files are of two patients says nothing of its other files.
        (["p0/1.png,head,B"], [1, 1, 1, 3, 3, 3, 3]),
    ],
)
def test_files_of_a_folder_without_a_row_are_of_the_patient_of_its_others(tmp_path, capsys, more, frames):
    draw_files(tmp_path / "in", *(f"p{patient}/{number}.png" for patient in range(5) for number in range(3)))
    rows = [*(f"p{patient}/0.png,head,A{patient}" for patient in range(5)), *more]
    (tmp_path / "t.csv").write_text("\n".join(["path,anatomy,patient_id", *rows]) + "\n")
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    prepared(capsys, *args)
    index = ScanIndex.from_dataset(tmp_path / "out")
    assert sorted(np.bincount(index.patients).tolist()) == frames


@pytest.mark.parametrize(
    ("rows", "source", "remedy"),
    [
        ("0.dcm,head,", "the tag PatientID.", ""),
        (
            "0.dcm,head,Anna",
            "the column patient_id of --labels, or without one the tag PatientID.",
            (
                " If these name one patient differently, fill in the column patient_id. If they do not, repeat the "
                "command with --patients_confirmed."
            ),
        ),
        # Every second file has no row, but is of an examination whose patient the table names.
        ("0.dcm,head,Anna\n2.dcm,head,B\n4.dcm,,C\n6.dcm,,D", "the column patient_id of --labels.", ""),
    ],
)
def test_a_tag_beside_a_table_is_a_guess(tmp_path, monkeypatch, capsys, rows, source, remedy):
    monkeypatch.setenv("AWCL_ID_KEY", "a key that is long enough")
    for number in range(8):
        study = number // 2
        write_dicom(
            tmp_path / f"in/{number}.dcm", moving_disc(1, seed=number), patient=f"p{study}", study=f"1.2.{study}"
        )
    (tmp_path / "t.csv").write_text(f"path,anatomy,patient_id\n{rows}\n")
    args = ("dicom", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    about, count, line = prepared(capsys, *args)
    assert (count, about.confirmed) == (4, not remedy)
    assert line == f"Patients: 4 of 8 file(s) in the dataset, taken from {source}{remedy}"


def clips(folder):
    for number in range(8):
        write_video(folder / f"P{number // 3}_{number}.avi", moving_disc(4, seed=number), "ffv1")
    return folder


@pytest.mark.parametrize(
    ("flags", "patients", "source", "confirmed"),
    [
        ((), 8, "each clip, such as 'P0_0.avi'", False),
        (
            ("--pattern=(?P<patient>[^_]+)",),
            3,
            "the group (?P<patient>...) of --pattern, such as 'P0', 'P1', 'P2'",
            True,
        ),
    ],
)
def test_clips_in_one_folder(tmp_path, capsys, flags, patients, source, confirmed):
    (tmp_path / "in").mkdir()
    out = f"--out={tmp_path / 'out'}"
    about, count, line = prepared(capsys, "video", f"--source={clips(tmp_path / 'in')}", out, "--every=1", *flags)
    assert (count, about.confirmed) == (patients, confirmed)
    assert f"of 8 file(s) in the dataset, taken from {source}" in line
    # Each clip is a scan of its own, whoever's it is.
    assert len(ScanIndex.from_dataset(tmp_path / "out").scan_names) == 8


def test_a_pattern_needs_a_folder_and_must_match(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "clips.csv").write_text("path\nin/P0_0.avi\n")
    for source, error in (
        ("clips.csv", "--pattern reads names of files in a folder"),
        ("in", "None of 8 file(s) can be used"),
    ):
        clips(tmp_path / "in")
        with pytest.raises(SystemExit):
            ingest.main(
                ["video", f"--source={tmp_path / source}", f"--out={tmp_path / 'out'}", "--pattern=(?P<patient>x)"]
            )
        assert error in capsys.readouterr().err


def test_the_report_keeps_no_names(tmp_path, capsys):
    folder = draw_files(tmp_path / "in", *FOLDERS)
    prepared(capsys, "folder", f"--source={folder}", f"--out={tmp_path / 'out'}")
    assert "p0" not in json.dumps(json.loads((tmp_path / "out" / "ingest_report.json").read_text()))
