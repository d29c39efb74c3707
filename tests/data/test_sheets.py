"""Excel workbooks say what the same table as CSV would."""

import datetime
import re
import zipfile

import pytest

from awcl_jax.data.images import read_manifest
from awcl_jax.runtime.errors import InputError

openpyxl = pytest.importorskip("openpyxl")
from openpyxl.cell.rich_text import CellRichText, TextBlock  # noqa: E402
from openpyxl.cell.text import InlineFont  # noqa: E402

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


def rewritten(book, change):
    """The workbook with each of its XML files changed."""
    out = book.with_name("changed.xlsx")
    with zipfile.ZipFile(book) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (7, "000", "007"),
        (12.0, "00000", "00012"),
        (1234, "000", "1234"),
        (12, '"P"0000', "P0012"),
        (12, '"P"0', "P12"),
        (123456789, "000\\-00\\-0000", "123-45-6789"),
        (7, "[$-409]00;[Red]-00", "07"),
        (-7, "000", "-7"),
        (1234, "#,##0", "1234"),
        (0.25, "00%", "0.25"),
        (12345678901234, "General", "12345678901234"),
        (True, "000", "True"),
        ("007", "General", "007"),
    ],
)
def test_numbers_have_the_zeros_that_a_user_sees(tmp_path, value, number_format, shown):
    workbook = openpyxl.Workbook()
    workbook.active.append(["path", "patient_id"])
    workbook.active.append(["a.png", value])
    workbook.active["B2"].number_format = number_format
    workbook.save(tmp_path / "x.xlsx")
    assert read_manifest(tmp_path / "x.xlsx")["patient_id"].to_pylist() == [shown]


def test_merged_cells_have_their_value_in_each_row(tmp_path):
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in [
        ("path", "anatomy", "patient_id", "note"),
        ("0.png", "4CH", "p1", "first"),
        ("1.png", None, None, "second"),
        ("2.png", None, "p2", None),
        (None, None, None, None),
        ("3.png", None, None, None),
        ("4.png", "LVOT", None, None),
    ]:
        sheet.append(row)
    expected = {
        "path": [f"{number}.png" for number in range(5)],
        "anatomy": ["4CH"] * 4 + ["LVOT"],  # B2:B6, of which row 5 is empty
        "patient_id": ["p1", "p1", "p2", None, None],  # C2:C3
        "note": ["first", "second", None, None, None],
    }
    for cells in ("B2:B6", "C2:C3", "D2:E2"):
        sheet.merge_cells(cells)
    workbook.save(tmp_path / "x.xlsx")
    assert read_manifest(tmp_path / "x.xlsx").to_pydict() == expected
    # Names are no values of the rows below them, and a row of merged cells alone is empty.
    sheet.insert_rows(1)
    sheet.merged_cells.ranges = set()
    sheet.merge_cells("C2:C4")
    sheet.merge_cells("A5:A6")
    workbook.save(tmp_path / "x.xlsx")
    expected |= {"anatomy": ["4CH", None, None, None, "LVOT"], "patient_id": [None, None, "p2", None, None]}
    assert read_manifest(tmp_path / "x.xlsx").to_pydict() == expected


def test_a_workbook_of_the_strict_edition(book):
    names = {
        b"http://schemas.openxmlformats.org/spreadsheetml/2006/": b"http://purl.oclc.org/ooxml/spreadsheetml/",
        b"http://schemas.openxmlformats.org/officeDocument/2006/": b"http://purl.oclc.org/ooxml/officeDocument/",
        b"http://schemas.openxmlformats.org/drawingml/2006/": b"http://purl.oclc.org/ooxml/drawingml/",
        b"<workbook ": b'<workbook conformance="strict" ',
    }

    def strict(name, content):
        for known, other in names.items():
            content = content.replace(known, other)
        if name == "xl/worksheets/sheet2.xml":  # dates are texts there
            content, count = re.subn(rb'(<c r="C2"[^>]*) t="n"><v>[^<]*<', rb'\1 t="d"><v>2024-01-31<', content)
            assert count == 1
        return content

    assert read_manifest(rewritten(book, strict)).to_pydict() == read_manifest(book).to_pydict()


def test_what_excel_stores_in_its_own_ways(tmp_path):
    workbook = openpyxl.Workbook()
    workbook.epoch = openpyxl.utils.datetime.CALENDAR_MAC_1904
    sheet = workbook.active
    sheet.append(["path", "anatomy", "when", "formula", "lost"])
    rich = CellRichText("four ", TextBlock(InlineFont(b=True), "chamber"))
    sheet.append(["a.png", rich, datetime.datetime(2024, 1, 31), '=IF(A2="","x","")', "#N/A"])
    sheet.append(["b.png", " two_x000D_\nlines", None, "=A2", None])
    sheet["E2"].data_type = "e"
    workbook.save(tmp_path / "x.xlsx")

    def calculated(name, content):
        texts = {b"D2": b"", b"D3": b"a.png"}
        for cell, text in texts.items() if name == "xl/worksheets/sheet1.xml" else ():
            as_excel = b'<c r="%s" t="str"><f>A2</f><v>%s</v></c>' % (cell, text)
            content, count = re.subn(rb'<c r="%s"[^>]*><f>.*?</c>' % cell, as_excel, content)
            assert count == 1
        return content

    assert read_manifest(rewritten(tmp_path / "x.xlsx", calculated)).to_pydict() == {
        "path": ["a.png", "b.png"],
        "anatomy": ["four chamber", " two\r\nlines"],
        "when": ["2024-01-31", None],
        "formula": [None, "a.png"],
        "lost": [None, None],
    }
    with pytest.raises(InputError, match=r"Cell D2 of .*x\.xlsx is a formula that was never calculated\. Open the"):
        read_manifest(tmp_path / "x.xlsx")
    sheet["B3"].value, sheet["B3"].data_type = "#REF!", "e"
    workbook.save(tmp_path / "x.xlsx")
    with pytest.raises(InputError, match=r"Cell B3 of .*x\.xlsx has the error #REF!\. Correct or clear it in the"):
        read_manifest(tmp_path / "x.xlsx")
