"""Files of features: a row for each frame, with its labels. Parquet, NPZ or CSV, by the file's suffix."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped
from pyarrow import compute as pc
from pyarrow import csv, parquet

from awcl_jax.embed.check import SUFFIXES
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write
from awcl_jax.runtime.formulas import without_formula

PROVENANCE = "awcl_jax"  # key of the Parquet file's metadata; name of the NPZ's array
_ROW_GROUP = 4096


def list_column(values: Shaped[np.ndarray, "n k"]) -> pa.FixedSizeListArray:
    """Return a column whose cells are the rows of a matrix."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def matrix(table: pa.Table, column: str) -> Float[np.ndarray, "n k"]:
    """Return the matrix whose rows are the cells of a column."""
    values = table[column].combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)


def write_table(out: Path, tables: Iterable[pa.Table], *, provenance: Mapping[str, str]) -> int:
    """Write the rows of several tables of one schema, one after the other; the file appears when it is complete.

    Parquet is written in row groups as the tables arrive, with one of them in memory; an NPZ needs all rows in memory.
    An NPZ has an array for each column, [n] or, for lists, [n, k]; all but numbers and dates is text, and null is "".
    A CSV is written as the tables arrive; it has a column for each value of a list, `features_0`, `features_1`, ...,
    and null is empty. A text, or a column's name, that a spreadsheet would run as a formula gets an apostrophe.

    Args:
      out: the file, .parquet, .npz or .csv.
      tables: at least one.
      provenance: origin of the features, for the file's metadata, as JSON; a CSV has no place for it.

    Returns:
      The number of rows.

    Raises:
      InputError: `out` has another suffix.
      OSError: it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise InputError(f"The file of features must end in {' or '.join(SUFFIXES)}; got {out}.")
    write = {".parquet": _write_parquet, ".npz": _write_npz, ".csv": _write_csv}[out.suffix]
    with atomic_write(out) as part:
        return write(part, tables, json.dumps(dict(provenance)))


def _write_parquet(path: Path, tables: Iterable[pa.Table], provenance: str) -> int:
    rows, writer = 0, None
    try:
        for group in _row_groups(tables):
            if writer is None:
                schema = group.schema.with_metadata({PROVENANCE: provenance})
                text = [field.name for field in schema if pa.types.is_string(field.type)]
                writer = parquet.ParquetWriter(path, schema, use_dictionary=text)
            writer.write_table(group.cast(schema), row_group_size=_ROW_GROUP)
            rows += group.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `_ROW_GROUP` rows; the last has the rest."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        while sum(part.num_rows for part in held) >= _ROW_GROUP:
            joined = pa.concat_tables(held)
            yield joined.slice(0, _ROW_GROUP)
            held = [joined.slice(_ROW_GROUP)]
    if any(part.num_rows for part in held):
        yield pa.concat_tables(held)


def _write_npz(path: Path, tables: Iterable[pa.Table], provenance: str) -> int:
    table = pa.concat_tables(tables)
    # Not np.savez, because a column may have the name of its argument `file`.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in table.column_names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, _array(table[name]), allow_pickle=False)
        with archive.open(f"{PROVENANCE}.npy", "w") as file:
            np.lib.format.write_array(file, np.array(provenance), allow_pickle=False)
    return table.num_rows


def _write_csv(path: Path, tables: Iterable[pa.Table], provenance: str) -> int:
    del provenance
    rows, writer = 0, None
    try:
        for table in tables:
            flat = _flat(table)
            if writer is None:
                writer = csv.CSVWriter(path, flat.schema)
            writer.write_table(flat)
            rows += flat.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def _flat(table: pa.Table) -> pa.Table:
    """Return a table of text, numbers, dates and truth values alone, with a column for each place of a list."""
    columns: list[tuple[str, pa.Array]] = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(column.type):  # its nulls, too: all tables must have the same columns
            places = range(column.type.list_size)
            columns.extend((f"{name}_{i}", _cells(pc.list_element(column, i))) for i in places)
        else:
            columns.append((name, _cells(column)))
    names = [name for name, _ in columns]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"The source has a column {min(repeated)!r}, which the CSV of features also has. Rename it.")
    return pa.table([column for _, column in columns], [without_formula(name) for name in names])


def _cells(column: pa.Array) -> pa.Array:
    if pa.types.is_primitive(column.type) and not pa.types.is_float16(column.type):
        return column
    return pa.array([None if text is None else without_formula(text) for text in _texts(column)], pa.string())


def _array(column: pa.ChunkedArray) -> np.ndarray:
    # A list that is null has no values for the matrix; the column becomes text.
    if pa.types.is_fixed_size_list(column.type) and not column.null_count:
        values = _plain(column.combine_chunks().flatten())
        return values.reshape(len(column), column.type.list_size)
    return _plain(column.combine_chunks())


def _plain(values: pa.Array) -> np.ndarray:
    """Keep numbers and dates, turn all else to text and null to "": objects in an NPZ would be pickled."""
    whole = pa.types.is_primitive(values.type) and not values.null_count
    if pa.types.is_floating(values.type) or (whole and not pa.types.is_time(values.type)):
        return values.to_numpy(zero_copy_only=False)
    return np.array([text or "" for text in _texts(values)], np.str_)


def _texts(values: pa.Array) -> list[str | None]:
    try:
        return [None if value is None else str(value) for value in values.to_pylist()]
    except ValueError:  # Python's times have no nanoseconds
        texts: list[str | None] = values.cast(pa.string()).to_pylist()
        return texts
