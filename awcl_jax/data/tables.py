"""Tables that list frames, with a user's labels."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from awcl_jax.data import images

LABELS = ("scan_id", "patient_id", "machine", "anatomy", "split")
"""Columns whose meaning is known."""


def read_labels(path: Path) -> pa.Table:
    """Read a table of files, see `images.read_manifest`: all its columns and `id`, which by default is the path.

    Raises:
      InputError: it is not such a table.
    """
    table = _without_gaps(images.read_manifest(path))
    return table if "id" in table.column_names else table.add_column(0, "id", table["path"])


def _without_gaps(table: pa.Table) -> pa.Table:
    """Return the table with null for a gap that is spelt out, in the columns whose meaning is known."""
    for place, name in enumerate(table.column_names):
        column = table[name]
        if name in LABELS and pa.types.is_string(column.type):
            gaps = pc.is_in(column, value_set=pa.array(sorted(images.GAPS)))
            table = table.set_column(place, name, pc.if_else(gaps, None, column))
    return table
