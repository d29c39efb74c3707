"""Labels from a table beside a folder reach the files that its rows name, and no others."""

from pathlib import Path

import pydicom
import pytest

from awcl_jax.data.about import About
from awcl_jax.data.private_table import read_private_table
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest import command as ingest
from awcl_jax.ingest.own.flags import _columns
from awcl_jax.ingest.own.items import Listing, Row
from awcl_jax.ingest.own.label_table import LabelTable, match, spread_patients
from tests.helpers.own_files import draw_files, moving_disc, write_dicom, write_video

pytestmark = pytest.mark.quick

KEY = "a key that is long enough"
SHOWN = ["a/1.PNG", "a/2.png", "b/1.PNG", "b/3.x.png", "c d/größe.png", "1.2.840.77"]
UID = "1.2.840.113619.2.7"


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("AWCL_ID_KEY", raising=False)


def names(*cells: str) -> dict[str, str | None]:
    """Name in a table -> the file that it names; None for none, `...` for several."""
    table = LabelTable(Path("t.csv"), ("path",), [(number, cell, {}) for number, cell in enumerate(cells, 1)])
    found = match(table, SHOWN, Path("/data/in"), lambda: {UID: 1})
    of = {number: SHOWN[place] for place, rows in found.files.items() for number, _ in rows}
    of |= {number: "..." for number, _ in found.ambiguous}
    assert len(of) + len(found.unmatched) == len(cells)
    return {cell: of.get(number) for number, cell in enumerate(cells, 1)}


def test_a_row_names_a_file_by_its_path_or_by_what_only_one_file_has():
    expected = {
        "a/1.PNG": "a/1.PNG",
        "./b//1.PNG": "b/1.PNG",
        r"b\1.png": "b/1.PNG",
        "/data/in/a/2.png": "a/2.png",
        "2.png": "a/2.png",
        "2": "a/2.png",
        "2.JPG": "a/2.png",
        "3.x": "b/3.x.png",
        "3": None,
        "1.png": "...",
        "1": "...",
        "b/1": "b/1.PNG",
        "b/2.png": None,  # 2.png is in a
        "export/a/2.png": None,  # others have paths below the source
        "export/2.png": None,
        "GRÖßE.png": "c d/größe.png",
        "gro\u0308ße": "c d/größe.png",
        "1.2.840.77": "1.2.840.77",
        UID: "a/2.png",
        f"{UID}.dcm": "a/2.png",
        "": None,
    }
    assert names(*expected) == expected


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"D:\\export\\a\\2.png": "a/2.png", "D:\\export\\b\\1.PNG": "b/1.PNG"}, "all begin alike"),
        (
            {"x/a/2.png": "a/2.png", "x/a/1.2.840.77": None},
            "the second lacks its file, which is in a",
        ),
        ({"x/a/1.2.840.77": "1.2.840.77"}, "it may be"),
        ({"a/1.PNG": "a/1.PNG", "a/1.2.840.77": None}, "the first has its whole path"),
        ({"x/1.2.840.77": None, "y/1.2.840.77": None}, "they begin differently"),
        ({"a/1.PNG": "a/1.PNG", "study/in/b/1.PNG": "b/1.PNG"}, "the source is `in`"),
        ({"in/b/1.PNG": "b/1.PNG", "other/b/1.PNG": None}, "the other is of another source"),
    ],
)
def test_a_path_may_begin_above_the_source(expected, why):
    assert names(*expected) == expected, why


def test_names_of_columns():
    given = _columns("path=File, anatomy=View,patient=\"Patient ID\",scan='a, b'")
    assert given == {"path": "File", "anatomy": "View", "patient_id": "Patient ID", "scan_id": "a, b"}


def run(capsys, *args: object) -> tuple[ScanIndex | None, str]:
    """The index, if the command succeeds, and what was printed."""
    try:
        ingest.main([*map(str, args), "--workers=1"])
    except SystemExit:
        return None, capsys.readouterr().err
    out, err = capsys.readouterr()
    return ScanIndex.from_dataset(next(str(arg)[6:] for arg in args if str(arg).startswith("--out="))), out + err


def labelled(index: ScanIndex) -> dict[str, str]:
    """File name -> its anatomy as stored."""
    place = {frame: at for at, frame in enumerate(index.frame_ids.tolist())}
    found = read_private_table(index.path).to_pylist()
    fine = {row["frame_id"]: index.fine[place[row["frame_id"]]] for row in found}
    return {
        Path(r["path"]).name: "" if fine[r["frame_id"]] < 0 else index.fine_names[fine[r["frame_id"]]] for r in found
    }


def test_pictures_without_folders_of_classes(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"export{n % 2}/{n}.png" for n in range(10)))
    rows = [f"{n},{'head' if n % 2 else 'femur'},{n // 3},{'TRAIN' if n < 6 else ''}" for n in range(9)]
    (tmp_path / "t.csv").write_text("\n".join(["File ,View,Patient ID,split", *rows, "gone.png,head,9,"]) + "\n")
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    args += ('--columns=path=File,anatomy=View,patient_id="Patient ID"',)
    index, said = run(capsys, *args)
    assert labelled(index) == {f"{n}.png": ("head" if n % 2 else "femur") if n < 9 else "" for n in range(10)}
    assert "t.csv (numbered from 1 below the heading) name(s) no file, such as row 10 'gone.png'." in said
    assert "1 file(s) without a row stay(s) unlabelled, such as file 10, 'export1/9.png'." in said
    assert "Labels: 9 of 10 row(s) name one of 10 file(s), 9 by less than its path." in said
    assert "2 of 4 patient(s) have no split in the table and train." in said
    assert set(index.split_names) == {"train"}
    # The two folders are not scans of all who are in them, and the file without a row is of a guessed patient.
    assert (len(index.patient_names), len(index.scan_names)) == (4, 7)
    assert not About.read(index.path).confirmed
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"gone.png" not in stored
    assert b"export1" not in stored


def test_classes_stay_if_the_table_has_no_anatomy(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"{'head' if n % 2 else 'femur'}/x_{n}.png" for n in range(8)))
    (tmp_path / "t.csv").write_text("\n".join(["path,patient_id", *(f"x_{n}.png,{n // 2}" for n in range(8))]))
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    index, _ = run(capsys, *args)
    assert labelled(index) == {f"x_{n}.png": "head" if n % 2 else "femur" for n in range(8)}
    assert len(index.patient_names) == 4
    assert About.read(index.path).confirmed


def test_a_row_whose_file_is_absent_gives_no_other_file_its_patient(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"P0{n}/1.png" for n in range(4)), "9.png")
    rows = [*(f"P0{n}/1.png,head,A{n}" for n in range(4)), "P07/9.png,femur,A7"]
    (tmp_path / "t.csv").write_text("\n".join(["path,anatomy,patient_id", *rows]))
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    index, said = run(capsys, *args, "--scan_from=stem")
    assert labelled(index)["9.png"] == ""
    assert index.fine_names == ("head",)
    assert "name(s) no file, such as row 5 'P07/9.png'." in said
    # All rows begin above the source, which is said.
    (tmp_path / "t.csv").write_text("\n".join(["path,anatomy,patient_id", *(f"x/in/{row}" for row in rows)]))
    index, said = run(capsys, *args[:-1], f"--out={tmp_path / 'above'}", "--scan_from=stem")
    assert labelled(index) == {"1.png": "head", "9.png": ""}
    assert "Labels: some paths begin above --source; 'x/in/' at their beginning is left out." in said


def test_a_gap_that_is_spelt_out_is_no_anatomy_but_a_folder_of_that_name_is(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"NA/{n}.png" for n in range(8)))
    cells = ["head", "nan", "NA", "N/A", "None", "null", "<NA>", "NaN"]
    (tmp_path / "t.csv").write_text("\n".join(["path,anatomy", *(f"{n}.png,{cell}" for n, cell in enumerate(cells))]))
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", "--test_share=0")
    args += ("--val_share=0", "--scan_from=stem")
    index, said = run(capsys, *args, f"--out={tmp_path / 'out'}")
    assert index.fine_names == ("head",)
    assert "differ only in case" not in said  # as nan and NaN do
    assert labelled(index) == {f"{n}.png": "head" if n == 0 else "" for n in range(8)}
    (tmp_path / "t.csv").write_text("\n".join(["path,machine", *(f"{n}.png,GE" for n in range(8))]))
    index, _ = run(capsys, *args, f"--out={tmp_path / 'classes'}")
    assert index.fine_names == ("NA",)


def test_names_that_fit_several_files(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"p{n % 4}/{n // 4}.png" for n in range(8)))
    (tmp_path / "t.csv").write_text("path,anatomy\np0/0.png,head\n1.png,femur\n")
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    index, said = run(capsys, *args)
    assert index is None
    assert "error: 1 row(s) of " in said
    assert "fit(s) several files, such as row 2 '1.png'. Write paths relative to --source, or set --skip_bad" in said
    index, said = run(capsys, *args, "--skip_bad")
    assert sorted(index.fine.tolist()) == [-1] * 7 + [0]


def test_two_rows_of_a_file_must_agree(tmp_path, capsys):
    draw_files(tmp_path / "in", *(f"p{n}/{n}.png" for n in range(4)))
    (tmp_path / "t.csv").write_text("path,anatomy\n0.png,head\n1.png,head\n1.png,femur\n0.png,head\n")
    args = ("folder", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    index, said = run(capsys, *args)
    assert index is None
    assert "left out file 2, 'p1/1.png': its file or frame number is listed twice: rows 2 and 3 of --labels" in said


@pytest.mark.parametrize(
    ("command", "columns", "message"),
    [
        ("folder", "--columns=path=Name", "has no column 'Name'; its columns are File, View."),
        ("folder", "--columns=path=File,label=View", "--columns must be NAME=COLUMN with NAME of path, scan_id,"),
        ("folder", "--columns=path=File", "must have at least one of the columns scan_id, patient_id, anatomy,"),
        ("dicom", "--columns=path=File,anatomy=Plane", "has no column 'Plane'; its columns are File, View."),
        ("dicom", "--columns=path=Name", "Details are hidden because cells may name patients"),
        ("folder", "--columns=path=File,anatomy=View", "names one of 1 file(s) in "),
    ],
)
def test_what_a_table_lacks(tmp_path, monkeypatch, capsys, command, columns, message):
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    draw_files(tmp_path / "in", "a/x.png")
    write_dicom(tmp_path / "in/a/x.dcm", moving_disc(1))
    (tmp_path / "t.csv").write_text("File,View\ny.png,head\n")
    args = (command, f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", columns)
    index, said = run(capsys, *args, f"--out={tmp_path / 'out'}")
    assert index is None
    assert message in said
    assert not (tmp_path / "out").exists()


def test_flags_that_do_not_fit(tmp_path, capsys):
    draw_files(tmp_path, "a/x.png")
    (tmp_path / "t.csv").write_text("path,anatomy\nx.png,head\n")
    out = f"--out={tmp_path / 'out'}"
    said = run(capsys, "video", f"--source={tmp_path / 't.csv'}", f"--labels={tmp_path / 't.csv'}", out)[1]
    assert "--labels is for a folder, but --source=" in said
    said = run(capsys, "folder", f"--source={tmp_path / 'a'}", "--columns=path=File", out)[1]
    assert "--columns is for a table, but --source=" in said


def test_dicom_by_uid_and_nothing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AWCL_ID_KEY", KEY)
    lines = ["Instance;View;Who"]
    for number in range(6):
        path = tmp_path / f"in/MUSTER{number}/IM{number}"
        write_dicom(path, moving_disc(1, seed=number), patient=f"p{number}", study=f"1.{number // 2}")
        uid = str(pydicom.dcmread(path).SOPInstanceUID)
        lines += [f"{uid};{'head' if number % 2 else 'femur'};{number // 2}"] * (number != 5)
    (tmp_path / "t.csv").write_text("\n".join([*lines, "MUSTERFRAU;head;9"]) + "\n")
    args = ("dicom", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    args += ("--columns=path=Instance,anatomy=View,patient=Who", "--keep_paths")
    index, said = run(capsys, *args)
    assert labelled(index) == {f"IM{n}": ("head" if n % 2 else "femur") if n < 5 else "" for n in range(6)}
    # The last file has no row, but is of an examination that the table gives a patient.
    assert (len(index.patient_names), len(index.scan_names)) == (3, 3)
    assert "name(s) no file, such as row 6." in said
    assert "1 file(s) without a row stay(s) unlabelled, such as file 6, id " in said
    assert "MUSTER" not in said


def test_clips(tmp_path, capsys):
    for number in range(4):
        (tmp_path / f"in/{number}").mkdir(parents=True)
        write_video(tmp_path / f"in/{number}/clip{number}.avi", moving_disc(3, seed=number), "ffv1")
    (tmp_path / "t.csv").write_text("path,anatomy,machine\nclip1,head,GE\nclip2,femur,\n")
    args = ("video", f"--source={tmp_path / 'in'}", f"--labels={tmp_path / 't.csv'}", f"--out={tmp_path / 'out'}")
    index, _ = run(capsys, *args)
    assert labelled(index) == {"clip0.avi": "", "clip1.avi": "head", "clip2.avi": "femur", "clip3.avi": ""}
    assert index.machine_names == ("", "GE")


def test_a_scan_has_one_patient():
    rows = [Row(n, Path(str(n)), str(n), scan, "guess") for n, scan in enumerate(["s", "s", "t", "u", "u"], 1)]
    listing = Listing(rows=rows)
    spread_patients(listing, {1: "p", 4: "q", 5: "r"})
    assert [(row.number, row.patient) for row in listing.rows] == [(1, "p"), (2, "p"), (3, "guess"), (4, "q")]
    assert [(fault.number, fault.kind) for fault in listing.faults] == [(5, "bad_cell")]
