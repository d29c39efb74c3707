"""Tables in a publisher's folder."""

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from awcl_jax.data.images import GAPS, named_separator
from awcl_jax.runtime.errors import InputError


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[tuple[str, dict[str, str]]]:
    """Rows of a CSV, without the blanks about names and values.

    Args:
      path: of the CSV; a byte-order mark is dropped.
      columns: that it must have.
      delimiter: between columns, unless a first line such as `sep=;` names another.

    Returns:
      (place for messages, value of each of `columns`) of every row.

    Raises:
      InputError: the file is not there, is no text, or lacks columns or rows.
    """
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in path.parent.glob("*.csv"))) or "none"
        raise InputError(f"{path.parent} has no {path.name}. CSV files there: {others}.")
    try:
        # Some tables have a byte-order mark, which utf-8-sig drops.
        with path.open(encoding="utf-8-sig", newline="") as file:
            if named := named_separator(file.readline()):
                delimiter = named
            else:
                file.seek(0)
            table = csv.DictReader(file, delimiter=delimiter, restval="", skipinitialspace=True)
            # The last column of FETAL_PLANES_DB is named "Train ", with a blank.
            table.fieldnames = [column.strip() for column in table.fieldnames or ()]
            if absent := [column for column in columns if column not in table.fieldnames]:
                raise InputError(
                    f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(table.fieldnames) or 'none'}. "
                    f"Columns are separated by {delimiter!r}."
                )
            rows = [
                (f"{path}, line {table.line_num}", {column: (cells[column] or "").strip() for column in columns})
                for cells in table
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV text file ({error}).") from error
    if not rows:
        raise InputError(f"{path} names no frames: it has a header and no rows.")
    return rows


def require_known(column: str, value: str, known: Sequence[str], place: str) -> None:
    """Refuse a value that is not one of those known, and propose the nearest.

    Raises:
      InputError: it is not.
    """
    if value not in known:
        nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{place}: unknown {column} {value!r}, did you mean {nearest!r}? Known are {', '.join(known)}."
        )


def number(cells: Mapping[str, str], column: str, place: str) -> float:
    """A number of a row.

    Raises:
      InputError: it is none.
    """
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {column} is a number; got {cells[column]!r}.")
    return value


def length_mm(cells: Mapping[str, str], column: str, place: str) -> float:
    """A length in millimetres; NaN where the cell is empty, or spells that it is.

    Raises:
      InputError: it is no number above 0.
    """
    if not cells[column] or cells[column] in GAPS:
        return math.nan
    value = number(cells, column, place)
    if value <= 0:
        raise InputError(f"{place}: {column} is a length above 0; got {cells[column]!r}. An empty cell says unknown.")
    return value
