#!/usr/bin/env bash
# openpyxl 3.1.5 opens a workbook of the strict edition of OOXML as one without any sheet.
#
# ISO/IEC 29500 has two editions; Excel saves the strict one as "Strict Open XML Spreadsheet (.xlsx)". They differ in the
# names of namespaces and relationships. Input: a workbook of one sheet with two cells, under the strict names.
# Expected: its cells; or an error that names the edition.
# Seen: no sheet and no error; a warning calls the sheet "an invalid specification". python-calamine 0.9.1 reads the cells of the same file.
# Exits with 0 while this holds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openpyxl==3.1.5 python-calamine==0.9.1
"$folder/venv/bin/python" - "$folder/strict.xlsx" <<'PYTHON'
import io
import sys
import warnings
import zipfile

import openpyxl
import python_calamine

known = openpyxl.Workbook()
known.active.append(["path", "patient_id"])
buffer = io.BytesIO()
known.save(buffer)
names = {
    b"http://schemas.openxmlformats.org/spreadsheetml/2006/main": b"http://purl.oclc.org/ooxml/spreadsheetml/main",
    b"http://schemas.openxmlformats.org/officeDocument/2006/relationships": (
        b"http://purl.oclc.org/ooxml/officeDocument/relationships"
    ),
    b"http://schemas.openxmlformats.org/drawingml/2006/main": b"http://purl.oclc.org/ooxml/drawingml/main",
    b"http://schemas.openxmlformats.org/officeDocument/2006/extended-properties": (
        b"http://purl.oclc.org/ooxml/officeDocument/extendedProperties"
    ),
    b"<workbook ": b'<workbook conformance="strict" ',
}
with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(sys.argv[1], "w") as new:
    for name in old.namelist():
        content = old.read(name)
        for was, now in names.items():
            content = content.replace(was, now)
        new.writestr(name, content)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sheets = openpyxl.load_workbook(sys.argv[1]).sheetnames
seen = {
    "openpyxl": sheets,
    "its warnings": [str(warning.message) for warning in caught],
    "calamine": python_calamine.CalamineWorkbook.from_path(sys.argv[1]).get_sheet_by_index(0).to_python(),
}
print(seen)
assert seen["calamine"] == [["path", "patient_id"]]
assert seen["openpyxl"] == [], "changed"
assert seen["its warnings"] == ["File contains an invalid specification for 0. This will be removed"], "changed"
PYTHON
