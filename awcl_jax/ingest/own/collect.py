"""Select the frames for the dataset from all chunks, and report the others."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int32, UInt64

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.private_table import SCHEMA
from awcl_jax.ingest.own.chunks import Outcome, read_chunk, records_of
from awcl_jax.ingest.own.items import Fault, Item
from awcl_jax.ingest.own.plan import Job

COUNTS = ("near", "blank", "coloured", "masked", "miscounted", "unscaled")


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of a chunk, by their positions in its file."""

    path: Path
    records: Int32[np.ndarray, " n"]


@dataclasses.dataclass
class Collection:
    """What was decoded.

    Attributes:
      parts: split -> its records, in order.
      sizes: split -> approximate bytes of these.
      faults: of files that could not be decoded, or that repeat frames.
      counts: of frames, by `COUNTS` (see `Outcome`).
      dropped: tags that were not read -> number of files that have them.
      across: frames left out because they repeat one of another patient, where patients are a guess.
      falls: region, the one tried next, kind of the fault and its detail -> numbers of the files.
      fans: scan -> those of its files, as numbers (see `data.fan.Fan`), if sectors were searched in clips.
    """

    parts: dict[str, list[Part]]
    sizes: Counter[str]
    faults: list[Fault]
    counts: Counter[str]
    dropped: Counter[str]
    across: int = 0
    falls: dict[tuple[str, ...], list[int]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    fans: dict[str, list[Sequence[float | None] | None]] = dataclasses.field(default_factory=lambda: defaultdict(list))


def collect(jobs: Sequence[Job], folder: Path, *, unit: str = "file", patients_confirmed: bool = True) -> Collection:
    """Collect the chunks of the jobs.

    Of frames that are equal pixel for pixel, one with a label is kept or else that of the file with the lowest number;
    the other files get a fault `duplicate`. If such frames have different labels, or different patients whom someone
    named, none of them can be trusted: all are left out, with a fault `conflict`. This takes 16 bytes of memory per
    frame, and more for those that are repeated.

    Args:
      jobs: all jobs, decoded.
      folder: of the chunks.
      unit: name of a file or row in messages.
      patients_confirmed: whether someone named the patients; a guess may have two names for one.
    """
    collection = Collection(defaultdict(list), Counter(), [], Counter(), Counter())
    hashes, owners = [], []
    for job in jobs:
        chunk = read_chunk(job, folder)
        collection.dropped.update(chunk.dropped)
        positions = []
        for item, outcome in zip(job.items, chunk.outcomes, strict=True):
            if outcome.kind:
                collection.faults.append(Fault(item.number, outcome.kind, outcome.detail))
                continue
            positions.append(np.arange(outcome.start, outcome.stop, dtype=np.int32))
            owners.append(np.full(outcome.stop - outcome.start, item.number, np.int32))
            hashes.append(_hashes(chunk.frame_ids[outcome.start : outcome.stop]))
            collection.sizes[job.items[0].split] += outcome.size
            _add_counts(collection.counts, outcome)
            for fall in outcome.falls:
                collection.falls[tuple(fall)].append(item.number)
            if outcome.fans:
                collection.fans[item.scan_id].extend(outcome.fans)
        if positions:
            collection.parts[job.items[0].split].append(Part(records_of(job, folder), np.concatenate(positions)))
    if hashes:
        items = {item.number: item for job in jobs for item in job.items}
        _drop_repeated(
            collection, np.concatenate(hashes), np.concatenate(owners), items, unit, confirmed=patients_confirmed
        )
    return collection


def files_of(collection: Collection, jobs: Sequence[Job], folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the file and the number of each collected frame, in the order of the records (see `data.private_table`).

    Args:
      collection: what was collected of the jobs.
      jobs: all jobs.
      folder: of the chunks.
    """
    job_of = {records_of(job, folder): job for job in jobs}
    for part in (part for parts in collection.parts.values() for part in parts):
        job = job_of[part.path]
        chunk = read_chunk(job, folder)
        made_from = {
            record: (str(item.path.absolute()), number)
            for item, outcome in zip(job.items, chunk.outcomes, strict=True)
            for record, number in itertools.zip_longest(range(outcome.start, outcome.stop), outcome.numbers)
        }
        records = part.records.tolist()
        rows = [(chunk.frame_ids[record], *made_from[record]) for record in records]
        yield pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def _hashes(frame_ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    return np.array([int(frame_id[:16], 16) for frame_id in frame_ids], np.uint64)


def _add_counts(counts: Counter[str], outcome: Outcome) -> None:
    for name in COUNTS:
        counts[name] += getattr(outcome, name)


def _drop_repeated(
    collection: Collection,
    hashes: UInt64[np.ndarray, " n"],
    owners: Int32[np.ndarray, " n"],
    items: Mapping[int, Item],
    unit: str,
    *,
    confirmed: bool,
) -> None:
    # Frames with equal pictures in sequence, that of the lowest file first.
    order = np.lexsort((owners, hashes))
    starts = np.flatnonzero(np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]]))
    stops = np.append(starts[1:], len(order))
    repeats = np.flatnonzero(stops - starts > 1)
    if not repeats.size:
        return
    repeated = np.zeros(len(hashes), bool)
    lost: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for first, last in zip(starts[repeats].tolist(), stops[repeats].tolist(), strict=True):
        group = order[first:last]
        equal = [items[number] for number in owners[group].tolist()]
        across = len({item.patient_id for item in equal}) > 1
        if differ := _difference(equal, across=across and confirmed):
            repeated[group] = True
            for item in equal:
                lost[item.number, "conflict", f", with another {differ}"].append(
                    min(other.number for other in equal if other is not item)
                )
            continue
        kept = min(range(len(equal)), key=lambda place: _by_labels(equal[place]))
        repeated[np.delete(group, kept)] = True
        collection.across += (len(equal) - 1) * across
        for item in equal[:kept] + equal[kept + 1 :]:
            lost[item.number, "duplicate", ""].append(equal[kept].number)
    frames_of = np.bincount(owners)
    for (number, kind, differ), others in lost.items():
        of_all = int(frames_of[number])
        frames = "its frame" if of_all == 1 else f"{len(others)} of its {of_all} frames"
        place = "also in" if kind == "conflict" else "first in" if min(others) < number else "kept from"
        collection.faults.append(Fault(number, kind, f"{frames}, {place} {unit} {min(others)}{differ}"))
    start = 0
    for split, parts in collection.parts.items():
        left = []
        for part in parts:
            stop = start + len(part.records)
            records = part.records[~repeated[start:stop]]
            if records.size:
                left.append(dataclasses.replace(part, records=records))
            start = stop
        collection.parts[split] = left


def _difference(equal: Sequence[Item], *, across: bool) -> str:
    """Return what contradicts itself in files of equal frames; a frame without a label contradicts none."""
    fine, coarse = ({getattr(item, name) for item in equal} - {UNLABELLED} for name in ("fine", "coarse"))
    return " and ".join(["anatomy"] * (len(fine) > 1 or len(coarse) > 1) + ["patient"] * across)


def _by_labels(item: Item) -> tuple[bool, bool, int]:
    """Return by what the one of equal frames is chosen: the most exact label, then the lowest number."""
    return item.fine == UNLABELLED, item.coarse == UNLABELLED, item.number
