"""Select the frames for the dataset from all chunks, and report the others."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64, UInt64

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.private_table import SCHEMA
from awcl_jax.ingest.own.chunks import Outcome, read_chunk, records_of
from awcl_jax.ingest.own.items import Fault, Item
from awcl_jax.ingest.own.paths import in_utf_8
from awcl_jax.ingest.own.plan import Job

FanNumbers = Sequence[float | None]

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
      files: with at least one frame that is kept.
      across: frames left out because they repeat one of another patient, where patients are a guess.
      example: of these, the numbers of the file that was left out and of the one that was kept.
      falls: region, the one tried next, kind of the fault and its detail -> numbers of the files.
      fans: scan -> those of its files, as numbers (see `data.fan.Fan`), if sectors were searched in clips.
      fans_of_frames: scan with a fan -> [frames in a row, their fan or None], one after another.
    """

    parts: dict[str, list[Part]]
    sizes: Counter[str]
    faults: list[Fault]
    counts: Counter[str]
    dropped: Counter[str]
    files: int = 0
    across: int = 0
    example: tuple[int, int] | None = None
    falls: dict[tuple[str, ...], list[int]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    fans: dict[str, list[FanNumbers | None]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    fans_of_frames: dict[str, list[tuple[int, FanNumbers | None]]] = dataclasses.field(default_factory=dict)


def collect(jobs: Sequence[Job], folder: Path, *, unit: str = "file", patients_confirmed: bool = True) -> Collection:
    """Collect the chunks of the jobs.

    Of frames that are equal pixel for pixel, one is kept (see `_preference`); the other files get a fault `duplicate`.
    If such frames have different labels, or different patients whom someone named, none of them can be trusted: all are
    left out, with a fault `conflict`. This takes 16 bytes of memory per frame, and more if some are repeated.

    Args:
      jobs: all jobs, decoded.
      folder: of the chunks.
      unit: name of a file or row in messages.
      patients_confirmed: whether someone named the patients; a guess may have two names for one.
    """
    collection = Collection(defaultdict(list), Counter(), [], Counter(), Counter())
    fan_of_file: dict[int, FanNumbers] = {}
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
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
                if (fan := outcome.fans[0]) is not None:
                    fan_of_file[item.number] = fan
        if positions:
            collection.parts[job.items[0].split].append(Part(records_of(job, folder), np.concatenate(positions)))
    items = {item.number: item for job in jobs for item in job.items}
    owner = np.concatenate(owners)
    repeated = _repeated(collection, np.concatenate(hashes), owner, items, unit, confirmed=patients_confirmed)
    _drop(collection, repeated)
    collection.files = len(np.unique(owner[~repeated]))
    collection.fans_of_frames = _fans_of_frames(owner[~repeated], fan_of_file, items)
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
            record: (in_utf_8(item.path.absolute()), number)
            for item, outcome in zip(job.items, chunk.outcomes, strict=True)
            for record, number in itertools.zip_longest(range(outcome.start, outcome.stop), outcome.numbers)
        }
        records = part.records.tolist()
        rows = [(chunk.frame_ids[record], *made_from[record]) for record in records]
        yield pa.RecordBatch.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)


def _fans_of_frames(
    owners: Int32[np.ndarray, " n"], fan_of_file: Mapping[int, FanNumbers], items: Mapping[int, Item]
) -> dict[str, list[tuple[int, FanNumbers | None]]]:
    """Return which frames of a scan have which fan, of scans with a fan, from the file of each frame in order."""
    scans = {items[number].scan_id for number in fan_of_file}
    runs: dict[str, list[tuple[int, FanNumbers | None]]] = {}
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    for number, count in zip(owners[starts].tolist(), np.diff(starts, append=len(owners)).tolist(), strict=True):
        if (scan := items[number].scan_id) in scans:
            runs.setdefault(scan, []).append((count, fan_of_file.get(number)))
    return runs


def _hashes(frame_ids: Sequence[str]) -> UInt64[np.ndarray, " n"]:
    return np.array([int(frame_id[:16], 16) for frame_id in frame_ids], np.uint64)


def _add_counts(counts: Counter[str], outcome: Outcome) -> None:
    for name in COUNTS:
        counts[name] += getattr(outcome, name)


def _repeated(
    collection: Collection,
    hashes: UInt64[np.ndarray, " n"],
    owners: Int32[np.ndarray, " n"],
    items: Mapping[int, Item],
    unit: str,
    *,
    confirmed: bool,
) -> Bool[np.ndarray, " n"]:
    """Return which frames are left out because of equal ones, and add the faults of their files."""
    # Frames with equal pictures in sequence, that of the lowest file first.
    order = np.lexsort((owners, hashes))
    starts = np.flatnonzero(np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]]))
    stops = np.append(starts[1:], len(order))
    repeats = np.flatnonzero(stops - starts > 1)
    repeated = np.zeros(len(hashes), bool)
    if not repeats.size:
        return repeated
    standings = _standings(owners[order], starts, items)
    lost: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for first, last in zip(starts[repeats].tolist(), stops[repeats].tolist(), strict=True):
        group = order[first:last]
        equal = [items[number] for number in owners[group].tolist()]
        if differ := _difference(equal, confirmed=confirmed):
            repeated[group] = True
            for item in equal:
                lost[item.number, "conflict", f", with another {differ}"].append(
                    min(other.number for other in equal if other is not item)
                )
            continue
        place = min(range(len(equal)), key=lambda place: _preference(equal[place], standings))
        repeated[np.delete(group, place)] = True
        kept = equal[place]
        for item in equal[:place] + equal[place + 1 :]:
            lost[item.number, "duplicate", ""].append(kept.number)
        if others := [item.number for item in equal if item.patient_id != kept.patient_id]:
            collection.across += len(others)
            collection.example = min(filter(None, (collection.example, (others[0], kept.number))))
    frames_of = np.bincount(owners)
    for (number, kind, differ), others in lost.items():
        of_all = int(frames_of[number])
        frames = "its frame" if of_all == 1 else f"{len(others)} of its {of_all} frames"
        where = "also in" if kind == "conflict" else "first in" if min(others) < number else "kept from"
        collection.faults.append(Fault(number, kind, f"{frames}, {where} {unit} {min(others)}{differ}"))
    return repeated


def _drop(collection: Collection, repeated: Bool[np.ndarray, " n"]) -> None:
    """Leave frames out of the parts, which have them in this order."""
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


def _standings(
    owners: Int32[np.ndarray, " n"], starts: Int64[np.ndarray, " m"], items: Mapping[int, Item]
) -> Mapping[str, tuple[bool, float, int]]:
    """Return for each patient with frames what tells a real one from one that copies are named after, the real lowest.

    - Whether it has several files, but no picture that is its alone: `Kopie` of `Kopie_von_P07_3.png` and
      `Kopie_von_P09_1.png`.
    - The mean length of the paths of those files that others have, too, because copying makes names longer. It is the
      patient's, so that one of two names of a patient is kept throughout.
    - The number of its first file.

    Args:
      owners: file of each frame, those with equal pictures in sequence.
      starts: where each picture begins.
      items: the files by number.
    """
    files: dict[str, list[Item]] = defaultdict(list)
    for number in np.unique(owners).tolist():
        files[items[number].patient_id].append(items[number])
    of_file = np.zeros(max(items) + 1, np.int32)
    for place, of_patient in enumerate(files.values()):
        of_file[[item.number for item in of_patient]] = place
    patients = of_file[owners]
    low, high = np.minimum.reduceat(patients, starts), np.maximum.reduceat(patients, starts)
    own = np.bincount(low[low == high], minlength=len(files)).tolist()
    shared = np.zeros(len(of_file), bool)
    shared[owners[np.repeat(low != high, np.diff(starts, append=len(owners)))]] = True
    standings = {}
    for (patient, of_patient), pictures in zip(files.items(), own, strict=True):
        lengths = [len(str(item.path)) for item in of_patient if shared[item.number]]
        mean = sum(lengths) / len(lengths) if lengths else 0.0
        standings[patient] = (len(of_patient) > 1 and not pictures, mean, of_patient[0].number)
    return standings


def _difference(equal: Sequence[Item], *, confirmed: bool) -> str:
    """Return what contradicts itself in files of equal frames; a frame without a label contradicts none.

    Patients do only if someone named them, all (`confirmed`) or these: a guess may have two names for one.
    """
    fine, coarse = ({getattr(item, name) for item in equal} - {UNLABELLED} for name in ("fine", "coarse"))
    patients = {item.patient_id for item in equal if confirmed or item.stated}
    return " and ".join(["anatomy"] * (len(fine) > 1 or len(coarse) > 1) + ["patient"] * (len(patients) > 1))


def _preference(item: Item, standings: Mapping[str, tuple[bool, float, int]]) -> tuple[object, ...]:
    """Return by what the one of equal frames is chosen, the lowest first.

    A copy whose name begins otherwise (`Copy of P07_3.png`) gives its frame a patient that does not exist. So after the
    most exact label come a patient named in the table, a row in it, and the patient who stands best; then the shortest
    path and the lowest number.

    Args:
      item: the file.
      standings: of the patients, see `_standings`.
    """
    return (
        item.fine == UNLABELLED,
        item.coarse == UNLABELLED,
        not item.stated,
        not item.listed,
        standings[item.patient_id],
        len(str(item.path)),
        item.number,
    )
