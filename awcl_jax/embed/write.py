"""Frames through an encoder into a file: read, encoded, compared with each other, written."""

import collections
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int64, UInt8
from tqdm import tqdm

from awcl_jax import __version__
from awcl_jax.data.sources import FrameSource, open_source, read_batches
from awcl_jax.embed import table as feature_tables
from awcl_jax.embed.projector import Projector
from awcl_jax.embed.table import list_column, matrix
from awcl_jax.evaluate.encode import FrozenEncoder, encode_batches
from awcl_jax.evaluate.neighbours import nearest, nearest_of_other_scans
from awcl_jax.report import drawing
from awcl_jax.runtime.errors import InputError

_MADE = ("features", "neighbour_ids", "neighbour_cosines", "neighbour_same_scan", feature_tables.PROVENANCE)
_QUERIES, _SHOWN = 8, 8  # rows of the picture, and neighbours in each


def embed(
    encoder: FrozenEncoder,
    path: str | Path,
    out: Path,
    *,
    split: str | None,
    batch_size: int,
    neighbours: int,
    picture: Path | None,
    projector: Path | None = None,
) -> tuple[int, dict[int, str]]:
    """Implement `awcl_jax.embed.embed_frames`; arguments and errors as there.

    Returns:
      (number of rows of the file, row of the source that could not be read -> reason)
    """
    source = open_source(path, size=encoder.frame_size, split=split, mask_overlays=encoder.mask_overlays)
    if taken := [name for name in _MADE if name in source.labels.column_names]:
        raise InputError(f"{path} has a column {taken[0]!r}, which the file of features also has. Rename it.")
    if picture is not None and _scans(source.labels).max() < 1:
        raise InputError(
            f"--picture shows neighbours from other scans, so {path} needs a column scan_id with two or more scans."
        )
    faults: dict[int, str] = {}
    viewed = None if projector is None else Projector()
    tables = _embedded(encoder, source, batch_size, faults, viewed)
    whole = None
    if neighbours:
        whole = _with_neighbours(pa.concat_tables(tables), neighbours)
        tables = iter([whole])
    if viewed is not None:
        tables = viewed.passing(tables)
    out.parent.mkdir(parents=True, exist_ok=True)
    provenance = {
        "encoder": encoder.origin,
        "source": str(path.resolve() if isinstance(path, Path) else path),
        "version": __version__,
    }
    rows = feature_tables.write_table(out, tables, provenance=provenance)
    if viewed is not None and projector is not None:
        viewed.write(projector)
    if whole is not None and picture is not None:
        _draw(whole, source, np.delete(np.arange(len(source)), list(faults)), min(neighbours, _SHOWN), picture)
    return rows, faults


def _embedded(
    encoder: FrozenEncoder, source: FrameSource, batch_size: int, faults: dict[int, str], viewed: Projector | None
) -> Iterator[pa.Table]:
    """Yield the labels and features of each frame that can be read, a batch at a time; fill `faults` and `viewed`."""
    waiting: collections.deque[Int64[np.ndarray, " b"]] = collections.deque()
    # No progress bar in a file or a pipe, where it would be many lines.
    with tqdm(total=len(source), unit="frame", dynamic_ncols=True, disable=None) as bar:

        def images() -> Iterator[UInt8[np.ndarray, "b h w"]]:
            for batch in read_batches(source, batch_size=batch_size):
                for row, fault in batch.faults.items():
                    tqdm.write(f"left out: {fault}", file=sys.stderr)
                    faults[row] = fault
                    bar.update()
                if batch.rows.size:
                    waiting.append(batch.rows)
                    if viewed is not None:
                        viewed.see(batch.images)
                    yield batch.images

        for features in encode_batches(encoder.encode, encoder.variables, images(), batch_size=batch_size):
            if not np.isfinite(features).all():
                raise InputError(f"Features of {encoder.origin} are not finite. Use an earlier checkpoint.")
            labels = source.labels.take(pa.array(waiting.popleft()))
            bar.update(labels.num_rows)
            yield labels.append_column("features", list_column(features))
    if len(faults) == len(source):
        raise InputError(f"None of the {len(source):,} frame(s) could be read, so no file was written.")


def _with_neighbours(table: pa.Table, count: int) -> pa.Table:
    """Return the table with the columns of neighbours."""
    if table.num_rows < 2:
        raise InputError("--neighbours needs at least two readable frames; got one. Omit --neighbours.")
    frames, cosines = nearest(matrix(table, "features"), count)
    k = frames.shape[1]
    ids = table["id"].take(pa.array(frames.reshape(-1))).combine_chunks()
    table = table.append_column("neighbour_ids", pa.FixedSizeListArray.from_arrays(ids, k))
    table = table.append_column("neighbour_cosines", list_column(cosines))
    if "scan_id" not in table.column_names:
        return table
    scans = _scans(table)
    same = pa.array(
        (scans[frames] == scans[:, None]).reshape(-1),
        mask=((scans[frames] < 0) | (scans[:, None] < 0)).reshape(-1),
    )
    return table.append_column("neighbour_same_scan", pa.FixedSizeListArray.from_arrays(same, k))


def _scans(table: pa.Table) -> Int64[np.ndarray, " n"]:
    """Return a number for each frame's scan; -1 where it is unknown."""
    if "scan_id" not in table.column_names:
        return np.full(table.num_rows, -1, np.int64)
    numbers = table["scan_id"].combine_chunks().dictionary_encode().indices
    return numbers.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)


def _draw(table: pa.Table, source: FrameSource, rows: Int[np.ndarray, " n"], count: int, out: Path) -> None:
    """Draw a frame from each of some scans, with its nearest neighbours from other scans.

    Args:
      table: frames with features.
      source: reads their pictures.
      rows: row of the source for each row of the table.
      count: number of neighbours of each.
      out: the PNG.
    """
    scans = _scans(table)
    present = np.unique(scans[scans >= 0])
    # Scans spread over the set, and the middle frame of each.
    drawn = present[np.linspace(0, present.size - 1, min(_QUERIES, present.size)).round().astype(int)]
    queries = np.array([np.flatnonzero(scans == scan)[np.count_nonzero(scans == scan) // 2] for scan in drawn])
    features = matrix(table, "features")
    found = nearest_of_other_scans(features, scans, queries, count)

    def pictures(frames: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w"]:
        return np.stack([source.read(int(row)) for row in rows[frames]])

    def caption(frame: int) -> str:
        labels = (table[name][frame].as_py() for name in ("scan_id", "anatomy") if name in table.column_names)
        return " ".join(str(value) for value in labels if value is not None)

    out.parent.mkdir(parents=True, exist_ok=True)
    drawing.montage_neighbours(
        pictures(queries),
        [pictures(frames) for frames, _ in found],
        [caption(query) for query in queries.tolist()],
        [
            [f"{cosine:.3f} {caption(frame)}" for frame, cosine in zip(frames.tolist(), cosines, strict=True)]
            for frames, cosines in found
        ],
        out,
    )
