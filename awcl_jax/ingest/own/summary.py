"""What an ingest says at its end: lines for the terminal, and a report that names no file and no patient."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awcl_jax.ingest.own.collect import Collection
from awcl_jax.ingest.own.items import WHY, Fault, Listing
from awcl_jax.ingest.own.privacy import HASHED_TAGS, READ_TAGS
from awcl_jax.runtime.files import atomic_write

REPORT = "ingest_report.json"
_FORMAT = 1
_SAID = {
    "near": "Dropped {:,} frame(s) that show what the one before showed (--near_duplicate).",
    "blank": "Dropped {:,} frame(s) of a single grey value.",
    "coloured": "Made grey out of colours in {:,} frame(s).",
    "masked": "Made {:,} frame(s) black outside of the ultrasound region.",
    "miscounted": "Read {:,} frame(s) of files that hold another number of frames than their NumberOfFrames.",
    "unscaled": "Stored no pixel size of {:,} frame(s): their regions differ in scale, have no square pixels, or "
    "leave the picture.",
}


def notes(faults: Sequence[Fault], collection: Collection) -> list[str]:
    """Sentences on what was left out and changed."""
    counts = Counter(fault.kind for fault in faults)
    said = [f"Left out {count:,} time(s): {WHY[kind]}." for kind, count in counts.items()]
    said += [_SAID[name].format(count) for name, count in collection.counts.items() if count]
    if collection.dropped:
        said.append(f"Read none of {len(collection.dropped):,} other tags; {REPORT} lists them.")
    return said


def write_report(
    out: Path,
    *,
    command: str,
    name: str,
    settings: Mapping[str, Any],
    listing: Listing,
    faults: Sequence[Fault],
    collection: Collection,
    prepared: bool,
) -> Path:
    """Write what was skipped, and why, as JSON.

    A file is named by its number alone: the line of its table, or its place among the sorted paths of its folder. Of a
    fault only the kind is kept, for the values that broke a rule may be a patient's.
    """
    numbers: dict[str, list[int]] = defaultdict(list)
    for fault in sorted(faults, key=lambda fault: fault.number):
        numbers[fault.kind].append(fault.number)
    frames = {split: sum(len(part.records) for part in parts) for split, parts in collection.parts.items()}
    report = {
        "format": _FORMAT,
        "command": command,
        "dataset": name,
        "prepared": prepared,
        "settings": dict(settings),
        "files": len(listing.rows),
        "ignored_files": listing.ignored,
        "frames": frames,
        "frames_by_treatment": dict(collection.counts),
        "skipped": {kind: {"why": WHY[kind], "count": len(of), "numbers": of} for kind, of in sorted(numbers.items())},
    }
    if command == "dicom":
        report |= {
            "tags_read": list(READ_TAGS),
            "tags_hashed": list(HASHED_TAGS),
            "tags_not_read": dict(sorted(collection.dropped.items())),
        }
    path = out / REPORT
    with atomic_write(path) as part:
        part.write_text(json.dumps(report, indent=2) + "\n")
    return path
