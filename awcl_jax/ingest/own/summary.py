"""Results of an ingest: lines for the terminal, and a report that names no file and no patient."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from awcl_jax.ingest.own.collect import Collection
from awcl_jax.ingest.own.items import WHY, Fault, Listing
from awcl_jax.ingest.own.privacy import HASHED_TAGS, READ_TAGS
from awcl_jax.runtime.files import write_whole

REPORT = "ingest_report.json"
_FORMAT = 1
_NOTES = {
    "near": "Dropped {:,} near-duplicate frame(s) (--near_duplicate).",
    "blank": "Dropped {:,} frame(s) with a single grey value.",
    "coloured": "Converted {:,} frame(s) from colour to grey.",
    "masked": "Cut {:,} frame(s) to the ultrasound region, black outside it.",
    "miscounted": "Read {:,} frame(s) of files whose number of frames differs from NumberOfFrames.",
    "unscaled": "Stored no pixel size for {:,} frame(s): their regions differ in scale, have non-square pixels, or "
    "extend beyond the picture.",
}


def notes(faults: Sequence[Fault], collection: Collection) -> list[str]:
    """Return sentences on what was left out and changed."""
    counts = Counter(fault.kind for fault in faults)
    sentences = [f"Left out {count:,} time(s): {WHY[kind]}." for kind, count in counts.items()]
    sentences += [_NOTES[name].format(count) for name, count in collection.counts.items() if count]
    if collection.dropped:
        sentences.append(f"Ignored {len(collection.dropped):,} other tags; {REPORT} lists them.")
    return sentences


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
    compared_tags: Sequence[str] = (),
) -> Path:
    """Write what was skipped, and why, as JSON.

    A file is identified only by its number: the row of its table, or its place among the sorted paths of its folder.
    Only the kind of a fault is kept, because the value that broke a rule may be a patient's.
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
        "regions_tried": [
            {"region": region, "then": then, "why": WHY[kind], "count": len(of), "numbers": sorted(of)}
            for (region, then, kind, _), of in sorted(collection.falls.items())
        ],
        "skipped": {kind: {"why": WHY[kind], "count": len(of), "numbers": of} for kind, of in sorted(numbers.items())},
    }
    if command == "dicom":
        report |= {
            "tags_read": list(READ_TAGS),
            "tags_hashed": list(HASHED_TAGS),
            "tags_compared_with_labels": list(compared_tags),
            "tags_not_read": dict(sorted(collection.dropped.items())),
        }
    path = out / REPORT
    write_whole(path, json.dumps(report, indent=2) + "\n")
    return path
