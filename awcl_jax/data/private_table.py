"""The private table of a dataset of your own scans: which file each frame was made from.

File names may name patients, so the table is not in the dataset's folder, which people copy and share, but beside it:

    data/own/own_scans/1.0.0/...              the dataset, prepared with --out=data/own
    data/own.private/own_scans.parquet        the table; only its owner can read the file and its folder

    frame_id: string    as in the dataset
    path: string        absolute path of the file; bytes of it that are not UTF-8 as escapes, such as \\xe4
    frame: int32        number of the frame in the file, from 0; null if unknown
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import atomic_write, require_regular

SCHEMA = pa.schema([("frame_id", pa.string()), ("path", pa.string()), ("frame", pa.int32())])


def private_table_of(dataset: Path) -> Path:
    """Return where the private table of a dataset is, whether it exists or not.

    Args:
      dataset: its folder, `OUT/NAME/VERSION`.
    """
    name, out = dataset.absolute().parents[0], dataset.absolute().parents[1]
    return out.with_name(f"{out.name}.private") / f"{name.name}.parquet"


def read_private_table(dataset: Path) -> pa.Table | None:
    """Read which file each frame of a dataset was made from.

    Args:
      dataset: its folder, `OUT/NAME/VERSION`, such as `ScanIndex.path`.

    Returns:
      A table of `SCHEMA`, in the order of the dataset's records when it was written; join it by `frame_id`. None if
      there is no such table.

    Raises:
      InputError: the table cannot be read, or is another one.
    """
    path = private_table_of(dataset)
    if not path.exists():
        return None
    require_regular(path)
    try:
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The private table {path} cannot be read ({first_line(error)}). Delete or replace it.") from (
            error
        )
    if table.schema != SCHEMA:
        raise InputError(
            f"The private table {path} must have the columns {', '.join(SCHEMA.names)}; got "
            f"{', '.join(table.column_names) or 'none'}. Delete or replace it."
        )
    return table


def write_private_table(dataset: Path, batches: Iterable[pa.RecordBatch]) -> Path:
    """Write the private table of a dataset, readable by its owner alone, and return its path.

    Args:
      dataset: its folder, `OUT/NAME/VERSION`.
      batches: of `SCHEMA`.

    Raises:
      OSError: the folder beside the dataset cannot be written to.
    """
    path = private_table_of(dataset)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with atomic_write(path) as part:
        part.chmod(0o600)  # before the first name is in it
        with parquet.ParquetWriter(part, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
    return path


def remove_private_table(dataset: Path) -> Path | None:
    """Delete the private table of a dataset, and its folder if no other table is in it.

    Args:
      dataset: its folder, `OUT/NAME/VERSION`.

    Returns:
      the path of the table; None if there was none.

    Raises:
      OSError: it cannot be deleted.
    """
    path = private_table_of(dataset)
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return None
    with contextlib.suppress(OSError):  # not empty
        path.parent.rmdir()
    return path
