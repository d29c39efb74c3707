"""Excel workbooks say what the same table as CSV would."""

import datetime
import re
import zipfile

import pytest

from awcl_jax.data.images import read_manifest
from awcl_jax.runtime.errors import InputError

openpyxl = pytest.importorskip("openpyxl")
pytestmark = pytest.mark.quick

ROWS = [
    ("path", "patient_id", "when ", "share", "spare", "yes"),
    ("a.png", 12.0, datetime.datetime(2024, 1, 31), 0.25, None, True),
    (None, None, None, None, None, None),
    ("b.png", 7, datetime.datetime(2024, 1, 31, 9, 30), None, None, "  "),
]


@pytest.fixture
def book(tmp_path):
    workbook = openpyxl.Workbook()
    workbook.active.title = "hidden"
    workbook.active.append(["path"])
    workbook.active.sheet_state = "hidden"
    for row in ROWS:
        (workbook["scans"] if "scans" in workbook else workbook.create_sheet("scans")).append(row)
    workbook.active = 1
    workbook.save(tmp_path / "scans.xlsx")
    return tmp_path / "scans.xlsx"


def test_cells_are_those_of_a_csv(book, tmp_path):
    (tmp_path / "scans.csv").write_text(
        "path,patient_id,when ,share,spare,yes\na.png,12,2024-01-31,0.25,,True\nb.png,7,2024-01-31 09:30:00,,,\n"
    )
    assert read_manifest(book).to_pydict() == read_manifest(tmp_path / "scans.csv").to_pydict()


def test_a_size_that_is_too_small_hides_nothing(book, tmp_path):
    other = tmp_path / "small.xlsx"
    with zipfile.ZipFile(book) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', old.read(name)))
    assert read_manifest(other).to_pydict() == read_manifest(book).to_pydict()


def test_what_is_no_workbook(book, tmp_path):
    (tmp_path / "x.xlsx").write_bytes(b"path,scan_id\n")
    with pytest.raises(InputError, match=r"is not an Excel workbook \(.xlsx\)"):
        read_manifest(tmp_path / "x.xlsx")
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(InputError, match="is not an Excel workbook that can be read"):
        read_manifest(tmp_path / "x.xlsx")
    workbook = openpyxl.Workbook()
    workbook.save(tmp_path / "x.xlsx")
    with pytest.raises(InputError, match="has no cells in its first visible sheet"):
        read_manifest(tmp_path / "x.xlsx")
    workbook.active["A1"], workbook.active["B2"] = "path", "a"
    workbook.save(tmp_path / "x.xlsx")
    with pytest.raises(InputError, match=r"Column 2 of .* has values but no name"):
        read_manifest(tmp_path / "x.xlsx")
