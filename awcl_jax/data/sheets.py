"""Excel workbooks as tables of text, read with openpyxl."""

import contextlib
import datetime
import importlib.util
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import require_honest_zip

_MOST_BYTES = 1 << 30  # unpacked
_MOST_ROWS = 1_048_576  # of Excel
# Names of ISO 29500 strict, which Excel writes as "Strict Open XML", and of the edition that openpyxl knows.
_STRICT, _TRANSITIONAL = rb"http://purl\.oclc\.org/ooxml/(\w+)/(\w+)", rb"http://schemas.openxmlformats.org/\1/2006/\2"
_MERGED = re.compile(rb"""<(?:\w+:)?mergeCell\s[^>]*?\bref=["']([A-Z]+[0-9]+:[A-Z]+[0-9]+)["']""")
_CONTROL = re.compile(r"_x00(09|0A|0D)_", re.IGNORECASE)  # as a text has a tab or a line break
_NUMBER_FORMAT = re.compile(r'\[[^\]]*\]|"[^"]*"|\\.|[-0 /()]')


def read_sheet(path: Path) -> pa.Table:
    """Read the first visible sheet of a workbook; its first row that is not empty has the names of the columns.

    Cells are text as a CSV would have it: 12 for a number 12.0, or 012 if its format is `000`; 2024-01-31 for a date;
    the last calculated value for a formula. Merged cells below the names have their value in each of their rows that
    has another one. An empty cell is null, and so is the error #N/A; empty rows, and columns without a name and a
    value, are left out.

    Raises:
      InputError: openpyxl is not installed, the file is not such a workbook, a column with values has no name, a cell
        has an error other than #N/A, or a formula was never calculated.
    """
    if importlib.util.find_spec("openpyxl") is None:
        raise InputError(f"openpyxl, which reads {path.name}, is not installed: pip install 'awcl_jax[xlsx]'.")
    try:
        require_honest_zip(path, most=_MOST_BYTES)
        rows = list(_rows(path))
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is not an Excel workbook (.xlsx). Save it as one, or as CSV.") from error
    except Exception as error:  # openpyxl raises many kinds, which may quote cells
        raise InputError(f"{path} is not an Excel workbook that can be read ({type(error).__name__}).") from error
    if not rows:
        raise InputError(f"{path} has no cells in its first visible sheet.")
    width = max(map(len, rows))
    columns = list(zip(*(row + [None] * (width - len(row)) for row in rows), strict=True))
    columns = [column for column in columns if any(cell is not None for cell in column)]
    if unnamed := [place for place, column in enumerate(columns, 1) if column[0] is None]:
        raise InputError(f"Column {unnamed[0]} of {path} has values but no name in the first row. Name or delete it.")
    try:
        return pa.Table.from_arrays(
            [pa.array(column[1:], pa.string()) for column in columns], names=[str(column[0]) for column in columns]
        )
    except pa.ArrowException as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}.") from error


def _rows(path: Path) -> Iterator[list[str | None]]:
    """Yield the rows of the first visible sheet that are not empty."""
    doubtful = named = False
    merged = _merged(path)
    lasting: dict[int, tuple[int, str | None]] = {}  # column -> last row, and text, of its merged cells
    for number, cells in enumerate(_cells(path, values=True), 1):
        if number - 1 > _MOST_ROWS:
            raise InputError(f"{path} must have at most {_MOST_ROWS:,} rows. Split it.")
        for cell in cells:
            if cell.data_type == "e" and cell.value != "#N/A":
                raise InputError(
                    f"Cell {cell.coordinate} of {path} has the error {cell.value}. Correct or clear it in the workbook."
                )
            # A formula whose value is an empty text has a type.
            doubtful |= cell.value is None and cell.data_type == "n" and hasattr(cell, "coordinate")
        row = [_to_text(cell) for cell in cells]
        if named and any(text is not None for text in row):
            for column in [column for column, (last, _) in lasting.items() if last >= number]:
                row += [None] * (column + 1 - len(row))
                row[column] = lasting[column][1]
        for column, last in merged.get(number, ()) if named else ():
            lasting[column] = last, row[column] if column < len(row) else None
        while row and row[-1] is None:
            row.pop()
        if row:
            named = True
            yield row
    if doubtful:
        _require_values(path)


def _require_values(path: Path) -> None:
    """Refuse a formula without a value, as a program writes it that does not calculate."""
    for cells, formulas in zip(_cells(path, values=True), _cells(path, values=False), strict=True):
        for cell, formula in zip(cells, formulas, strict=True):
            if cell.value is None and cell.data_type == "n" and formula.data_type == "f":
                raise InputError(
                    f"Cell {formula.coordinate} of {path} is a formula that was never calculated. Open the workbook in "
                    "Excel or LibreOffice, save it, and use that."
                )


def _cells(path: Path, *, values: bool) -> Iterator[Sequence[Any]]:
    """Yield the rows of the first visible sheet, with formulas or their values."""
    with _sheet(path, values=values) as sheet:
        if sheet is not None:
            sheet.reset_dimensions()  # some programs write a size that is too small
            yield from sheet.iter_rows()


def _merged(path: Path) -> dict[int, list[tuple[int, int]]]:
    """Return row -> column (from 0) and last row of the cells that are merged with others below.

    openpyxl leaves this out of a sheet that it reads row by row, so it is read from the end of the sheet's XML.
    """
    from openpyxl.utils.cell import range_boundaries

    merged: dict[int, list[tuple[int, int]]] = {}
    with _sheet(path, values=True) as sheet:
        if sheet is None:
            return merged
        with sheet._get_source() as source:
            rest = b""
            while block := source.read(1 << 20):
                found = list(_MERGED.finditer(rest + block))
                for reference in found:
                    column, first, _, last = range_boundaries(reference[1].decode())
                    if last > first:
                        merged.setdefault(first, []).append((column - 1, last))
                rest = (rest + block)[max(found[-1].end() if found else 0, len(rest + block) - 200) :]
    return merged


@contextlib.contextmanager
def _sheet(path: Path, *, values: bool) -> Iterator[Any]:
    """Open the first visible sheet of a workbook, with formulas or their values; None if it has none."""
    import openpyxl

    with (
        warnings.catch_warnings(action="ignore"),  # about styles and validation, which are not read
        contextlib.closing(openpyxl.load_workbook(_readable(path), read_only=True, data_only=values)) as book,
    ):
        yield next((sheet for sheet in book.worksheets if sheet.sheet_state == "visible"), None)


def _readable(path: Path) -> Path | io.BytesIO:
    """Return a workbook that openpyxl can read: in one of the strict edition it would find no sheet."""
    with zipfile.ZipFile(path) as archive:
        if not re.search(_STRICT, archive.read("_rels/.rels")):
            return path
        renamed = io.BytesIO()
        with zipfile.ZipFile(renamed, "w", zipfile.ZIP_DEFLATED) as out:
            for name in archive.namelist():
                if name.endswith((".xml", ".rels")):
                    out.writestr(name, re.sub(_STRICT, _TRANSITIONAL, archive.read(name)))
    renamed.seek(0)
    return renamed


def _to_text(cell: Any) -> str | None:
    value = cell.value
    if value is None or cell.data_type == "e":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    if type(value) is int:
        text = _filled(value, cell.number_format) or str(value)
    else:
        text = _CONTROL.sub(lambda match: chr(int(match[1], 16)), str(value))
    return text if text.strip() else None


def _filled(number: int, number_format: str) -> str | None:
    """Return a number in a format of zeros, such as `000` or `"P"00-00`; None if the format is of another kind."""
    section = number_format.split(";")[0]
    tokens = _NUMBER_FORMAT.findall(section)
    zeros = tokens.count("0")
    if number < 0 or not zeros or "".join(tokens) != section:
        return None
    digits = str(number).zfill(zeros)
    spare, shown = len(digits) - zeros, ""
    for token in tokens:
        if token == "0":
            end = spare + 1 if spare else 1  # the first zero has all that are more
            shown, digits, spare = shown + digits[:end], digits[end:], 0
        elif not token.startswith("["):  # of a language or colour
            shown += token.strip('"') if token.startswith('"') else token.removeprefix("\\")
    return shown
