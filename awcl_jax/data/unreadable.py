"""Unreadable frames of a prepared dataset, found before a run by reading all frames.

Whether a frame can be read is a property of the dataset. So it is checked where the frames of a run are chosen, and
later code does not need to know: the plan of batches stays a function of index and seed.
"""

import contextlib
import csv
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from awcl_jax.data.reader import decode_picture
from awcl_jax.data.records import Records
from awcl_jax.data.scans import dataset_key, find_dataset
from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.runtime.files import atomic_write
from awcl_jax.runtime.formulas import without_formula

_CACHE = "unreadable.json"
_CACHE_FORMAT = "2"  # a new number when more or fewer frames count as readable
_CHUNK = 256  # records that a thread goes through at a time


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A frame that cannot be read.

    Attributes:
      split: name of its split.
      record: position in the split.
      frame_id: its name; empty if the whole record, which has the name, cannot be read.
      fault: the reason, in one line.
    """

    split: str
    record: int
    frame_id: str
    fault: str


def find_unreadable(path: str | os.PathLike[str], *, threads: int | None = None) -> tuple[Unreadable, ...]:
    """Read every record of a dataset and decode its image and mask.

    The result is cached beside the dataset and reused as long as no file of the dataset changes its size or
    modification time.

    Args:
      path: folder of the prepared dataset, or a parent folder with exactly one.
      threads: number of threads; by default as many as this process has cores, up to 16.

    Returns:
      The frames that cannot be read, in the order of splits and records; the same for any number of threads.

    Raises:
      InputError: there is no dataset or several, one cannot be opened, or no frame of a split can be read.
      OSError: a file of the dataset is missing or cannot be opened, which is not damage.
    """
    path = find_dataset(path)
    key = f"{_CACHE_FORMAT} {dataset_key(path)}"
    found = _from_cache(path, key)
    if found is None:
        found = tuple(_read_all(Records(path), threads or min(16, len(os.sched_getaffinity(0)))))
        _to_cache(path, key, found)
    return found


def write_list(found: Sequence[tuple[Path, Unreadable]], path: Path) -> None:
    """Write frames that cannot be read, each with the folder of its dataset, as CSV without formulas."""
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["dataset", *(field.name for field in dataclasses.fields(Unreadable))])
        for dataset, frame in found:
            table.writerow(map(without_formula, (str(dataset), *dataclasses.astuple(frame))))


def _read_all(records: Records, threads: int) -> Iterator[Unreadable]:
    _require_files(records)
    total = sum(map(records.count, records.splits))
    with (
        ThreadPoolExecutor(threads) as pool,
        Bar(total=total, desc=f"Checking {records.path}", unit=" frames", disable=None) as progress,
    ):
        for split in records.splits:
            count, bad = records.count(split), 0
            chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
            for chunk, faults in zip(chunks, pool.map(partial(_check, records, split), chunks), strict=True):
                progress.update(len(chunk))
                bad += len(faults)
                yield from faults
            if count and bad == count:
                raise InputError(f"No frame of split {split!r} of {records.path} can be read. Copy the dataset again.")


def _require_files(records: Records) -> None:
    for split in records.splits:
        for file in records.info.splits[split].filepaths:
            with Path(file).open("rb"):
                pass


def _check(records: Records, split: str, positions: range) -> list[Unreadable]:
    """Return those of some records of a split that cannot be read."""
    faults = []
    for position in positions:
        frame_id, fault = _fault(records, split, position)
        if fault:
            faults.append(Unreadable(split, position, frame_id, fault))
    return faults


def _fault(records: Records, split: str, position: int) -> tuple[str, str]:
    """Return the frame's name, if it can be read, and what is wrong with it."""
    try:
        fields = records.read(split, position)
    except InputError as error:
        return "", first_line(error.__cause__ or error)
    faults = [decode_picture(picture, fields[picture])[1] for picture in records.pictures]
    return fields["frame_id"].decode(), "; ".join(filter(None, faults))


def _from_cache(path: Path, key: str) -> tuple[Unreadable, ...] | None:
    """Return the cached result, or None if this dataset has not been checked yet."""
    try:
        stored = json.loads((path / _CACHE).read_text("utf-8"))
        return tuple(Unreadable(**frame) for frame in stored["frames"]) if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_cache(path: Path, key: str, found: Sequence[Unreadable]) -> None:
    # A dataset on a read-only disk works too, but opens more slowly.
    with contextlib.suppress(OSError), atomic_write(path / _CACHE) as part:
        part.write_text(json.dumps({"key": key, "frames": [dataclasses.asdict(frame) for frame in found]}))
