"""Tables that list files: CSV, Parquet or Excel."""

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from awcl_jax.data import images
from awcl_jax.ingest.own.items import BadFileError, Fault, Listing, Rectangle, Row
from awcl_jax.ingest.own.owners import Owners
from awcl_jax.ingest.own.paths import composed, resolve
from awcl_jax.runtime.errors import InputError

COLUMNS = ("path", "scan_id", "patient_id", "anatomy", "split", "machine", "mask", "pixel_mm", "frame", "region")
SPLITS = ("train", "val", "test")
_PATHS = ("path", "mask")
_NAMED = ("path", "anatomy")  # where the spelling of a gap may be a name
_BATCH = 4096


def read_manifest(
    path: Path,
    *,
    root: Path | None = None,
    columns: Sequence[str] = COLUMNS,
    required: Sequence[str] = ("path",),
    names: Mapping[str, str] | None = None,
) -> Listing:
    """Read a table with a row for each file, with `awcl_jax.data.images.read_manifest`.

    Columns are `path`, `scan_id`, `patient_id`, `anatomy`, `split` (train, val or test), `machine`, `mask` (a path),
    `pixel_mm`, `frame` (its number in its scan, which orders the frames) and `region` (the rectangle to keep: x0, y0,
    x1, y1). In `anatomy`, `split`, `machine`, `pixel_mm` and `region` an empty cell means unknown; any other column
    must have a value in every row. A spelt-out gap (`awcl_jax.data.images.GAPS`) counts as empty, except in `path`,
    where it is a name; an anatomy keeps its spelling because a taxonomy may define it.

    Args:
      path: of the table; its rows are numbered from 1.
      root: folder that paths are relative to and must be in; by default the table's.
      columns: to read; others are named in a remark.
      required: columns that must exist.
      names: name of a column here -> its name in the table, if that is another.

    Raises:
      InputError: the table cannot be read, lacks columns, has one that seems to be another misspelt, or lists nothing.
    """
    root = path.parent if root is None else root
    table, unused = read_columns(path, columns=columns, required=required, names=names, flag="--source")
    wanted = table.column_names
    listing = Listing(unit="row", named=True, remarks=said_of_unused(path, unused))
    if "patient_id" in wanted:
        listing.patients_from, listing.patients_confirmed = "the column patient_id", True
    else:
        listing.patients_from = "each scan (scan_id)" if "scan_id" in wanted else "each file"
    seen: dict[Any, int] = {}
    owners = Owners()
    for number, given in rows_of(table):
        listing.has_masks |= bool(given.get("mask"))
        listing.splits |= {given.get("split", "").lower()} & {*SPLITS}
        try:
            row = _parse(number, given, root)
            keys: dict[Any, str] = {str(row.path): "the same file is in"}
            if "frame" in given:
                keys[row.scan, row.frame] = f"frame {row.frame} of its scan is in"
            for key, what in keys.items():
                if key in seen:
                    raise BadFileError("same_row", f"{what} row {seen[key]}")
            if owners.of_another(row) is not None:
                raise BadFileError("bad_cell", "an earlier row has its scan_id with another patient_id")
            seen |= dict.fromkeys(keys, number)
        except BadFileError as error:
            listing.faults.append(Fault(number, error.kind, error.detail, given["path"]))
        else:
            listing.rows.append(row)
    listing.has_splits = any(row.split for row in listing.rows)
    return listing


def read_columns(
    path: Path,
    *,
    columns: Sequence[str],
    required: Sequence[str] = ("path",),
    names: Mapping[str, str] | None = None,
    flag: str,
) -> tuple[pa.Table, list[str]]:
    """Read columns of a table; `flag` named the table. Other arguments and errors are those of `read_manifest`.

    Returns:
      the columns, and the names of those that are not read.
    """
    if not path.is_file() or path.suffix.lower() not in images.TABLES:
        others = "; `video` and `dicom` also take a folder" if flag == "--source" else ""
        raise InputError(f"{flag} must be an existing table ({', '.join(images.TABLES)}){others}; got {path}.")
    if foreign := [name for name in names or {} if name not in columns]:
        raise images.ColumnError(
            f"--columns must be NAME=COLUMN with NAME of {', '.join(columns)}; got {', '.join(foreign)}.", headed=True
        )
    table = images.read_manifest(path, columns=names)
    if absent := [name for name in required if name not in table.column_names]:
        raise images.ColumnError(
            f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(table.column_names)}. Known columns: "
            f"{', '.join(columns)}; --columns={absent[0]}=NAME uses another name."
            + (f" Without scans: `ingest folder --labels={path}`." if absent == ["scan_id"] else ""),
            headed=True,
        )
    unused = [name for name in table.column_names if name not in columns]
    for name in unused:
        if meant := _meant(name, [known for known in columns if known not in table.column_names]):
            raise images.ColumnError(
                f"{path} has no column {meant!r}, but {name!r}. If that is meant, rename it or set "
                f"--columns={meant}={name}; if it is something else, give it another name.",
                headed=True,
            )
    return table.select([name for name in columns if name in table.column_names]), unused


def _meant(name: str, absent: Sequence[str]) -> str | None:
    """Return the known column that a name seems to be meant for: `Patient`, `anatmy`."""
    plain = "_".join(re.findall(r"[^\W_]+", name.casefold()))
    if f"{plain}_id" in absent:
        return f"{plain}_id"
    return next(iter(difflib.get_close_matches(plain, absent, n=1, cutoff=0.8)), None)


def said_of_unused(path: Path, unused: Sequence[str]) -> list[str]:
    """Return a sentence on the columns of a table that are not read, if there are any."""
    return [f"{path}: column(s) not used: {', '.join(unused)}."] if unused else []


def _parse(number: int, given: Mapping[str, str], root: Path) -> Row:
    for name in ("path", "scan_id", "patient_id", "mask", "frame"):
        if not given.get(name, "x"):
            raise BadFileError("bad_cell", f"{name} is empty")
    try:
        frame = int(given.get("frame", number))
    except ValueError as error:
        raise BadFileError("bad_cell", f"frame must be a whole number; got {given['frame']!r}") from error
    return Row(
        number,
        resolve(given["path"], root),
        given["path"],
        mask=_mask(given["mask"], root) if "mask" in given else None,
        frame=frame,
        **parse_labels(given),
    )


def parse_labels(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a `Row` that a table's cells state; what it does not state is unknown.

    Raises:
      BadFileError: a cell is invalid.
    """
    split = given.get("split", "").lower()
    if split not in (*SPLITS, ""):
        raise BadFileError("bad_cell", f"split must be one of {', '.join(SPLITS)}; got {given['split']!r}")
    try:
        pixel_mm = float(given.get("pixel_mm") or math.nan)
    except ValueError as error:
        raise BadFileError("bad_cell", f"pixel_mm must be a number; got {given['pixel_mm']!r}") from error
    if pixel_mm <= 0 or math.isinf(pixel_mm):
        raise BadFileError("bad_cell", f"pixel_mm must be a length above 0; got {given['pixel_mm']!r}")
    return {
        "scan": composed(given.get("scan_id", "")),
        "patient": composed(given.get("patient_id", "")),
        "anatomy": composed(given.get("anatomy", "")),
        "split": split,
        "machine": given.get("machine", ""),
        "pixel_mm": pixel_mm,
        "region": _region(given.get("region", "")),
    }


def _region(cell: str) -> Rectangle | None:
    parts = re.split(r"[\s,;]+", cell.strip("()[] ")) if cell else []
    if not parts:
        return None
    if len(parts) == 4 and all(re.fullmatch(r"[0-9]{1,6}(\.0*)?", part) for part in parts):
        x0, y0, x1, y1 = (int(float(part)) for part in parts)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    raise BadFileError("bad_cell", f"region must be x0 y0 x1 y1 in pixels, with x0 < x1 and y0 < y1; got {cell!r}")


def _mask(name: str, root: Path) -> Path:
    try:
        return resolve(name, root)
    except BadFileError as error:
        raise BadFileError("bad_mask", Fault(0, error.kind).rule) from error


def rows_of(table: pa.Table) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number from 1, cells as text) of the rows."""
    number = 0
    for batch in table.to_batches(_BATCH):
        for cells in batch.to_pylist():
            number += 1
            yield number, texts_of(cells)


def texts_of(cells: Mapping[str, Any]) -> dict[str, str]:
    """Return the cells of a row as text, empty for a gap that is spelt out (see `read_manifest`)."""
    texts = {name: to_text(cell, strip=name not in _PATHS) for name, cell in cells.items()}
    gaps = [name for name, text in texts.items() if text in images.GAPS and name not in _NAMED]
    return texts | dict.fromkeys(gaps, "")


def to_text(cell: Any, *, strip: bool) -> str:
    """Return a cell as a CSV would have it: pandas turns numbers with gaps into floats, 12 into 12.0."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    text = str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
    return text.strip() if strip else text  # a file name may begin or end with a blank
