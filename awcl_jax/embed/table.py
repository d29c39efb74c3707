"""Files of features: a row for each frame, with its labels. Parquet or NPZ, by the file's suffix."""

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped
from pyarrow import parquet

from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write

SUFFIXES = (".parquet", ".npz")
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

    Args:
      out: the file, .parquet or .npz.
      tables: at least one.
      provenance: origin of the features, for the file's metadata, as JSON.

    Returns:
      The number of rows.

    Raises:
      InputError: `out` has another suffix.
      OSError: it cannot be written.
    """
    if out.suffix not in SUFFIXES:
        raise InputError(f"The file of features must end in {' or '.join(SUFFIXES)}; got {out}.")
    write = _write_parquet if out.suffix == ".parquet" else _write_npz
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


def _array(column: pa.ChunkedArray) -> np.ndarray:
    # A list that is null has no values for the matrix; the column becomes text.
    if pa.types.is_fixed_size_list(column.type) and not column.null_count:
        values = _plain(column.combine_chunks().flatten())
        return values.reshape(len(column), column.type.list_size)
    return _plain(column.combine_chunks())


def _plain(values: pa.Array) -> np.ndarray:
    """Keep numbers and dates, turn all else to text and null to "": objects in an NPZ would be pickled."""
    if pa.types.is_floating(values.type) or (pa.types.is_primitive(values.type) and not values.null_count):
        return values.to_numpy(zero_copy_only=False)
    return np.array(["" if value is None else str(value) for value in values.to_pylist()], np.str_)
