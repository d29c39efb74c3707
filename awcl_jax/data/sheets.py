"""Excel workbooks as tables of text, read with openpyxl."""

import contextlib
import datetime
import importlib.util
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import require_honest_zip

_MOST_BYTES = 1 << 30  # unpacked
_MOST_ROWS = 1_048_576  # of Excel


def read_sheet(path: Path) -> pa.Table:
    """Read the first visible sheet of a workbook; its first row that is not empty has the names of the columns.

    Cells are text as a CSV would have it: 12 for a number 12.0, 2024-01-31 for a date, the last calculated value for a
    formula. An empty cell is null; empty rows, and columns without a name and a value, are left out.

    Raises:
      InputError: openpyxl is not installed, the file is not such a workbook, or a column with values has no name.
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
    import openpyxl

    with (
        warnings.catch_warnings(action="ignore"),  # about styles and validation, which are not read
        contextlib.closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book,
    ):
        sheet = next((sheet for sheet in book.worksheets if sheet.sheet_state == "visible"), None)
        if sheet is None:
            return
        sheet.reset_dimensions()  # some programs write a size that is too small
        for number, cells in enumerate(sheet.iter_rows(values_only=True)):
            if number > _MOST_ROWS:
                raise InputError(f"{path} must have at most {_MOST_ROWS:,} rows. Split it.")
            row = [_to_text(cell) for cell in cells]
            while row and row[-1] is None:
                row.pop()
            if row:
                yield row


def _to_text(cell: Any) -> str | None:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        cell = cell.date()
    text = "" if cell is None else str(cell)
    return text if text.strip() else None
