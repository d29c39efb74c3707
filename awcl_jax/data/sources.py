"""Frames for an encoder to read once, from a prepared dataset or from picture files."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Int32, UInt8

from awcl_jax.data import images
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.folders import holds_dataset
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import Square
from awcl_jax.data.tables import read_labels
from awcl_jax.runtime import bucket
from awcl_jax.runtime.errors import InputError

Read = Callable[[int], UInt8[np.ndarray, "size size"]]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSource:
    """Frames that are read one by one.

    Attributes:
      labels: a row for each frame. The column `id` names it; `scan_id`, `patient_id`, `machine`, `anatomy` and `split`
        are there where they are known, and so is whatever else a user's table has. Null is unknown; in these columns,
        so is a gap that a table spells out (`images.GAPS`).
      reader: (how frames are made square) -> (row) -> the frame; `InputError` if it cannot be read. Safe to call from
        many threads.
    """

    labels: pa.Table
    reader: Callable[[Square], Read]

    def __len__(self) -> int:
        return self.labels.num_rows


@dataclasses.dataclass(frozen=True, eq=False)
class ReadBatch:
    """Frames that were read together.

    Attributes:
      rows: rows of the source that could be read.
      images: the frames.
      faults: row that could not be read -> reason, in one line.
    """

    rows: Int[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b size size"]
    faults: dict[int, str]


def open_source(path: str | os.PathLike[str], *, split: str | None = None) -> FrameSource:
    """Open frames of a prepared dataset, a folder of pictures, one picture, or the files that a table names.

    Nothing is decoded yet.

    Args:
      path: folder of a prepared dataset, or a parent folder; a folder with pictures in it and below; a picture; or a
        table (CSV, Parquet or Excel) with a column `path`, relative to the table's folder, and any others.
      split: of a prepared dataset; by default all its frames.

    Raises:
      InputError: there are no frames, a table is damaged, a dataset has no such split, or `split` is set for a source
        without splits.
    """
    path = bucket.local_dataset(path)
    if path.is_dir() and holds_dataset(path):
        return _of_dataset(path, split)
    if split is not None:
        raise InputError(f"--split needs a prepared dataset; {path} is not one. Omit --split.")
    if path.is_dir():
        names = images.find_images(path)
        if not names:
            raise InputError(f"{path} has neither a prepared dataset nor pictures ({', '.join(images.IMAGES)}).")
        return _of_files(pa.table({"id": pa.array(names, pa.string())}), "id", path)
    if not path.is_file():
        raise InputError(
            f"There is no file or folder {path}. Use a dataset, a folder of pictures, a picture or a table."
        )
    if path.suffix.lower() in images.IMAGES:
        return _of_files(pa.table({"id": [path.name]}), "id", path.parent)
    if path.suffix.lower() in images.TABLES:
        return _of_files(read_labels(path), "path", path.parent)
    kinds = ", ".join((*images.IMAGES, *images.TABLES))
    raise InputError(f"The source must be a folder or a file that ends in {kinds}; got {path}.")


def read_batches(read: Read, count: int, *, batch_size: int, threads: int | None = None) -> Iterator[ReadBatch]:
    """Yield all frames of a source in order, read and decoded ahead by threads.

    Memory does not grow with the number of frames.

    Args:
      read: of the source.
      count: of its frames.
      batch_size: rows a batch covers; it has fewer frames at the end and where some cannot be read.
      threads: by default as many as this process has cores, up to 16.
    """
    import grain  # imports JAX, for which a bad source does not wait

    threads = min(16, len(os.sched_getaffinity(0))) if threads is None else threads

    def load(batch: int) -> ReadBatch:
        rows, frames, faults = [], [], {}
        for row in range(batch * batch_size, min((batch + 1) * batch_size, count)):
            try:
                frames.append(read(row))
            except InputError as error:
                faults[row] = str(error)
            else:
                rows.append(row)
        images = np.stack(frames) if frames else np.zeros((0, 1, 1), np.uint8)
        return ReadBatch(np.array(rows, np.int64), images, faults)

    # An element is a whole batch, so that threads cannot change the order of frames.
    dataset: Any = grain.MapDataset.range(-(-count // batch_size)).map(load)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)))


def _of_dataset(path: Path, split: str | None) -> FrameSource:
    index = ScanIndex.from_dataset(path)
    if split is not None:
        index = index.split(split)
    if not len(index):
        raise InputError(f"{index.path} has no frames{'' if split is None else f' in its split {split!r}'}.")
    fine = _named(index.fine, index.fine_names)
    labels = pa.table(
        {
            "id": pa.array(index.frame_ids.tolist(), pa.string()),
            "scan_id": _named(index.scans, index.scan_names),
            "patient_id": _named(index.patients, index.patient_names),
            "machine": _named(index.machines, index.machine_names),
            "anatomy": pc.coalesce(fine, _named(index.coarse, index.coarse_names)),
            "split": _named(index.splits, index.split_names),
        }
    )

    def reader(square: Square) -> Read:
        # Without a cache: each frame is read once.
        frames = FrameReader(index, square.size, 0, mask_overlays=square.mask_overlays, aspect=square.aspect)
        return lambda row: frames.read(np.array([row]))[0]

    return FrameSource(labels, reader)


def _named(ids: Int32[np.ndarray, " n"], names: tuple[str, ...]) -> pa.Array:
    known = pa.array(ids, mask=ids == UNLABELLED)
    return pa.DictionaryArray.from_arrays(known, pa.array(names, pa.string())).cast(pa.string())


def _of_files(labels: pa.Table, column: str, root: Path) -> FrameSource:
    names = labels[column]

    def read(row: int, square: Square) -> UInt8[np.ndarray, "size size"]:
        name = names[row].as_py()
        if not name:
            raise InputError(f"Row {row + 1} of the table in {root} names no file: its path is empty.")
        return square.of(images.read_image(images.find_named(root, name)))

    return FrameSource(labels, lambda square: partial(read, square=square))
