"""Frames through an encoder into a file: read, encoded, compared with each other, written."""

import collections
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int64, UInt8

from awcl_jax import __version__
from awcl_jax.data.sources import FrameSource, Read, read_batches
from awcl_jax.data.square import Square
from awcl_jax.embed import table as feature_tables
from awcl_jax.embed.files import FRAME_NUMBER, FileSource
from awcl_jax.embed.projector import Projector
from awcl_jax.embed.table import list_column, matrix
from awcl_jax.evaluate.encode import FrozenEncoder, encode_batches
from awcl_jax.evaluate.neighbours import nearest, nearest_of_other_scans
from awcl_jax.report import drawing
from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.errors import InputError

_MADE = ("features", "neighbour_ids", "neighbour_cosines", "neighbour_same_scan", feature_tables.PROVENANCE)
_QUERIES, _SHOWN = 8, 8  # rows of the picture, and neighbours in each


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
    """Frames that were read together.

    Attributes:
      labels: a row for each frame.
      images: the frames.
      places: for each frame, its row or file in the source, and its number in that file.
      faults: row or file that could not be read -> reason, in one line.
      done: rows or files of the source that are finished with this batch.
    """

    labels: pa.Table
    images: UInt8[np.ndarray, "b size size"]
    places: list[tuple[int, int]]
    faults: dict[int, str]
    done: int


def embed(
    encoder: FrozenEncoder,
    source: FrameSource | FileSource,
    out: Path,
    *,
    origin: str,
    batch_size: int,
    neighbours: int,
    picture: Path | None,
    projector: Path | None = None,
) -> tuple[int, int, dict[int, str]]:
    """Implement `awcl_jax.embed.embed_frames`; arguments and errors as there.

    Returns:
      (number of rows of the file, of features, row or file of the source that could not be read -> reason)
    """
    names = source.columns if isinstance(source, FileSource) else source.labels.column_names
    if taken := [name for name in _MADE if name in names]:
        raise InputError(f"{origin} has a column {taken[0]!r}, which the file of features also has. Rename it.")
    if names.count(FRAME_NUMBER) > 1:
        raise InputError(f"{origin} has a column {FRAME_NUMBER!r}, which is added for clips and DICOM. Rename it.")
    faults: dict[int, str] = {}
    places: list[tuple[int, int]] = []
    viewed = None if projector is None else Projector()
    tables = _embedded(encoder, source, batch_size, faults, places, viewed)
    whole = None
    if neighbours:
        whole = _with_neighbours(pa.concat_tables(tables), neighbours)
        tables = iter([whole])
    if viewed is not None:
        tables = viewed.passing(tables)
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, FileSource) and source.pseudonyms.keyed:
        origin = source.pseudonyms.digest("file", origin)  # a folder or a file may have a patient's name
    provenance = {"encoder": encoder.origin, "source": origin, "version": __version__}
    first = next(tables)
    features = first.schema.field("features").type.list_size
    rows = feature_tables.write_table(out, itertools.chain([first], tables), provenance=provenance)
    if viewed is not None and projector is not None:
        viewed.write(projector)
    if whole is not None and picture is not None:
        _draw(whole, _reread(source, places, encoder.square), min(neighbours, _SHOWN), picture)
    return rows, features, faults


def _embedded(
    encoder: FrozenEncoder,
    source: FrameSource | FileSource,
    batch_size: int,
    faults: dict[int, str],
    places: list[tuple[int, int]],
    viewed: Projector | None,
) -> Iterator[pa.Table]:
    """Yield the labels and features of each frame that can be read, a batch at a time; fill the rest."""
    waiting: collections.deque[pa.Table] = collections.deque()
    read = _file_batches if isinstance(source, FileSource) else _frame_batches
    unit = " files" if isinstance(source, FileSource) else " frames"
    # No progress bar in a file or a pipe, where it would be many lines.
    with Bar(total=len(source), desc="Embedding", unit=unit, dynamic_ncols=True, disable=None) as bar:

        def images() -> Iterator[UInt8[np.ndarray, "b h w"]]:
            for batch in read(source, encoder.square, batch_size):  # type: ignore[arg-type]
                for row, fault in batch.faults.items():
                    Bar.write(f"left out: {fault}", file=sys.stderr)
                    faults[row] = fault
                bar.update(batch.done)
                if batch.places:
                    places.extend(batch.places)
                    waiting.append(batch.labels)
                    if viewed is not None:
                        viewed.see(batch.images)
                    yield batch.images

        for features in encode_batches(encoder.encode, encoder.variables, images(), batch_size=batch_size):
            if not np.isfinite(features).all():
                raise InputError(f"Features of {encoder.origin} are not finite. Use an earlier checkpoint.")
            yield waiting.popleft().append_column("features", list_column(features))
    if not places:
        what = "frame" if isinstance(source, FrameSource) else "file"
        raise InputError(f"None of the {len(source):,} {what}(s) could be read, so no file was written.")


def _frame_batches(source: FrameSource, square: Square, batch_size: int) -> Iterator[_Batch]:
    for batch in read_batches(source.reader(square), len(source), batch_size=batch_size):
        labels = source.labels.take(pa.array(batch.rows))
        places = [(row, 0) for row in batch.rows.tolist()]
        yield _Batch(labels, batch.images, places, batch.faults, len(places) + len(batch.faults))


def _file_batches(source: FileSource, square: Square, batch_size: int) -> Iterator[_Batch]:
    """Yield batches over the borders of files; the frames of one file and of one batch are in memory."""
    tables: list[pa.Table] = []
    images: list[UInt8[np.ndarray, "size size"]] = []
    places: list[tuple[int, int]] = []
    for file in range(len(source)):
        faults: dict[int, str] = {}
        try:
            read = source.read(file, square)
        except InputError as error:
            faults[file] = str(error)
        else:
            tables.append(read.labels)
            images.extend(read.images)
            places.extend((file, number) for number in read.numbers)
        done, last = 1, file == len(source) - 1
        while len(images) >= batch_size or (last and images):
            labels = pa.concat_tables(tables)
            yield _Batch(labels[:batch_size], np.stack(images[:batch_size]), places[:batch_size], faults, done)
            tables, images, places = [labels[batch_size:]], images[batch_size:], places[batch_size:]
            faults, done = {}, 0
        if done:
            empty = np.zeros((0, square.size, square.size), np.uint8)
            yield _Batch(pa.table({}), empty, [], faults, done)


def _reread(source: FrameSource | FileSource, places: list[tuple[int, int]], square: Square) -> Read:
    """Return a function that reads the frame of a row of the features again."""
    if isinstance(source, FileSource):
        return lambda row: source.picture(*places[row], square)
    read = source.reader(square)
    return lambda row: read(places[row][0])


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


def _draw(table: pa.Table, read: Read, count: int, out: Path) -> None:
    """Draw some frames, each of another scan, with their nearest neighbours from other scans.

    Where fewer than two scans are known, each frame counts as a scan.

    Args:
      table: frames with features.
      read: (row of the table) -> the frame.
      count: number of neighbours of each.
      out: the PNG.
    """
    scans = _scans(table)
    by_scan = scans.max() >= 1
    if not by_scan:
        scans = np.arange(table.num_rows)
    present = np.unique(scans[scans >= 0])
    # Scans spread over the set, and the middle frame of each.
    drawn = present[np.linspace(0, present.size - 1, min(_QUERIES, present.size)).round().astype(int)]
    queries = np.array([np.flatnonzero(scans == scan)[np.count_nonzero(scans == scan) // 2] for scan in drawn])
    features = matrix(table, "features")
    found = nearest_of_other_scans(features, scans, queries, count)
    named = [name for name in ("scan_id" if by_scan else "id", "anatomy") if name in table.column_names]

    def pictures(frames: Int[np.ndarray, " m"]) -> UInt8[np.ndarray, "m h w"]:
        return np.stack([read(row) for row in frames.tolist()])

    def caption(frame: int) -> str:
        labels = (table[name][frame].as_py() for name in named)
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
        whence="from other scans" if by_scan else "",
    )
