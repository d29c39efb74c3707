"""Tables in a publisher's folder."""

import csv
import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from awcl_jax.data.images import GAPS, named_separator
from awcl_jax.runtime.errors import InputError


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",") -> list[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV, without blanks around names and values.

    Args:
      path: of the CSV; a byte-order mark is dropped.
      columns: required ones.
      delimiter: between columns, unless a first line such as `sep=;` names another.

    Returns:
      (place for messages, value of each of `columns`) of every row.

    Raises:
      InputError: the file does not exist, is not text, or lacks columns or rows.
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
        raise InputError(f"{path} is not a CSV text file ({error}).") from error
    if not rows:
        raise InputError(f"{path} lists no frames: it has a header but no rows.")
    return rows


def require_known(column: str, value: str, known: Sequence[str], place: str) -> None:
    """Refuse an unknown value, and suggest the nearest known one.

    Raises:
      InputError: the value is unknown.
    """
    if value not in known:
        nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{place}: unknown {column} {value!r}, did you mean {nearest!r}? Known values: {', '.join(known)}."
        )


def number(cells: Mapping[str, str], column: str, place: str) -> float:
    """Return a number of a row.

    Raises:
      InputError: it is not a number.
    """
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {column} must be a number; got {cells[column]!r}.")
    return value


def length_mm(cells: Mapping[str, str], column: str, place: str) -> float:
    """Return a length in millimetres; NaN if the cell is empty, or spells a gap.

    Raises:
      InputError: it is not a number above 0.
    """
    if not cells[column] or cells[column] in GAPS:
        return math.nan
    value = number(cells, column, place)
    if value <= 0:
        raise InputError(
            f"{place}: {column} must be a length above 0; got {cells[column]!r}. Leave the cell empty if unknown."
        )
    return value
