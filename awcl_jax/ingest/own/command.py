"""Run the subcommands of `python -m awcl_jax.ingest` that read your own scans."""

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from awcl_jax.data.anatomy import Taxonomy
from awcl_jax.data.beams import FANS_OF_FRAMES
from awcl_jax.data.fan import FANS
from awcl_jax.data.images import GAPS, IMAGES
from awcl_jax.data.private_table import private_table_of, remove_private_table, write_private_table
from awcl_jax.data.record import frame_features
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.square import ASPECT, LETTERBOX
from awcl_jax.data.stored import open_dataset
from awcl_jax.ingest.own import dicom, videos
from awcl_jax.ingest.own.builder import OwnScans
from awcl_jax.ingest.own.chunks import decode_all, removed_examples
from awcl_jax.ingest.own.collect import Collection, collect, files_of
from awcl_jax.ingest.own.contact_sheet import write_contact_sheet, write_removed_sheet
from awcl_jax.ingest.own.items import HARMLESS, REGIONS, WHY, Fault, Item, Listing, Reading
from awcl_jax.ingest.own.label_table import EXAMPLES, examples
from awcl_jax.ingest.own.labels import found_taxonomy, read_taxonomy, resolve_names, same_but_for_case
from awcl_jax.ingest.own.manifest import SPLITS
from awcl_jax.ingest.own.owners import leave_out_second_patients
from awcl_jax.ingest.own.patients import (
    FILES,
    alike_but_for_case,
    copies_of_others,
    describe_patients,
    patients_metadata,
    store_patients,
    taken_for_patients,
)
from awcl_jax.ingest.own.plan import Job, make_items, make_jobs
from awcl_jax.ingest.own.privacy import KEY_VARIABLE, MATCHED_TAGS, Naming, Pseudonyms, read_key
from awcl_jax.ingest.own.region import NO_PART, steps_of
from awcl_jax.ingest.own.summary import notes, write_report
from awcl_jax.ingest.prepare import only_writer, prepare, require_apart
from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.errors import InputError, in_words

MONTAGE = "montage.png"
REMOVED = "removed.png"
KINDS = {"manifest": "image", "folder": "image", "video": "video", "dicom": "dicom"}

_LINES_OF_A_KIND = 20
_REMEDY = "Choose another --out or --name, or delete that folder."


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared dataset: its folder, and sentences on what was left out."""

    path: Path
    notes: list[str]


def run(args: argparse.Namespace, out: Path) -> Prepared:
    """Prepare the dataset that the arguments of a subcommand ask for.

    Files that cannot be used are listed on stderr, one per line; the others are decoded.

    Args:
      args: of the subcommand.
      out: folder for the dataset.

    Raises:
      InputError: some files cannot be used and `--skip_bad` is not set; the report is written, and decoded frames are
        kept for the next run. Or no file can be used, or an argument is invalid.
    """
    pseudonyms = Pseudonyms(read_key(args.key_file))
    _check(args, out, pseudonyms)
    target = out / args.name / str(OwnScans.VERSION)
    cropped = not _is_from_before(target, ASPECT)
    aspect = args.aspect or (LETTERBOX if cropped else None)
    reading = Reading(
        **{f.name: getattr(args, f.name) for f in dataclasses.fields(Reading) if hasattr(args, f.name)}, crop=cropped
    )
    listing = args.list_source(args, pseudonyms)
    leave_out_second_patients(listing)
    listing.patients_confirmed |= args.patients_confirmed
    naming = Naming(pseudonyms, args.command == "dicom" and not args.show_paths, listing.unit)
    listing.cause = taken_for_patients(listing, command=args.command, show=not naming.hidden)
    for line in [*listing.remarks, *_said_of_links(listing, naming), *alike_but_for_case(listing, naming)]:
        print(line, file=sys.stderr)
    stratified = not _is_from_before(target, "stratified")
    try:
        taxonomy, items = _plan(args, listing, pseudonyms, stratified=stratified)
    except InputError:
        _say(listing, sorted(listing.faults, key=lambda fault: fault.number), {}, naming)  # of which this may come
        raise
    jobs = make_jobs(items, pseudonyms, kind=KINDS[args.command], reading=reading, taxonomy=taxonomy)
    settings = _settings(args, reading, listing, jobs, pseudonyms, stratified=stratified, aspect=aspect)
    work = out / f".{args.name}.chunks"
    if existed := target.exists():
        said = _require_same(target, settings)
        if not work.exists():
            print(f"{target} is already prepared: nothing to do.")
            confirmed = store_patients(target, listing.patients_from, confirmed=listing.patients_confirmed)
            listing.patients_confirmed = confirmed
            index = ScanIndex.from_dataset(target)
            line = describe_patients(listing, items, index, command=args.command, show=not naming.hidden)
            return Prepared(target, [*said, *_said_of_files(target, args), line])
    work.mkdir(parents=True, exist_ok=True)
    with only_writer(work, wait=False):
        with Bar(total=len(items), desc="Decoding", unit=" files") as progress:
            decode_all(jobs, work, workers=args.workers, progress=progress.update)
        collection = collect(jobs, work, unit=listing.unit, patients_confirmed=listing.patients_confirmed)
        faults = sorted(listing.faults + collection.faults, key=lambda fault: fault.number)
        _say(listing, faults, collection.falls, naming)
        usable = sum(len(part.records) for parts in collection.parts.values() for part in parts) > 0
        prepared = usable and (args.skip_bad or all(fault.kind in HARMLESS for fault in faults))
        said = _said_of_scans(args, listing, items, faults, collection, pseudonyms)
        shown = copies_of_others(listing, collection, naming)  # but not stored
        if prepared:
            stored = [*said, *copies_of_others(listing, collection)]
            metadata = _metadata(settings, stored, listing, collection, aspect)
            prepare(_builder(args, out, taxonomy, reading, collection, metadata), out)
            # Names of DICOM files often name the patient.
            wanted = args.command != "dicom" if args.keep_paths is None else args.keep_paths
            if wanted:
                shown.append(_store_files(target, collection, jobs, work))
            elif args.keep_paths is False or not existed:
                shown += _remove_files(target)
        report = write_report(
            out,
            command=args.command,
            name=args.name,
            settings=settings,
            listing=listing,
            faults=faults,
            collection=collection,
            prepared=prepared,
            compared_tags=MATCHED_TAGS if getattr(args, "labels", None) else (),
        )
        if not prepared:
            _refuse(listing, faults, usable, report)
        index = ScanIndex.from_dataset(target)
        write_contact_sheet(index, out / MONTAGE)
        (out / REMOVED).unlink(missing_ok=True)
        if len(removed := removed_examples(jobs, work)):
            write_removed_sheet(removed, out / REMOVED)
            said.append(f"Check in {out / REMOVED} that the removed parts (red) are text, not echoes.")
        # Last: while it exists, the next run resumes from it.
        shutil.rmtree(work)
    return Prepared(
        target,
        [
            *said,
            *shown,
            describe_patients(listing, items, index, command=args.command, show=not naming.hidden),
            f"Check {out / MONTAGE} for burnt-in text. {report} lists the rest.",
        ],
    )


def _said_of_scans(
    args: argparse.Namespace,
    listing: Listing,
    items: Sequence[Item],
    faults: Sequence[Fault],
    collection: Collection,
    pseudonyms: Pseudonyms,
) -> list[str]:
    """Return sentences on what was left out, and on what to look at, to be stored with the dataset."""
    return [
        *listing.notes,
        *notes(faults, collection),
        *_said_of_lost_splits(listing, items, collection),
        *_said_of_unread(listing),
        *([] if args.taxonomy else _said_of_case(listing)),
        *([listing.advice] if listing.advice else []),
        *_said_of_ids(args, pseudonyms),
    ]


def _metadata(
    settings: Mapping[str, Any], sentences: list[str], listing: Listing, collection: Collection, aspect: str | None
) -> dict[str, Any]:
    """Return what is stored beside the records: how they were made, of what, and where their fans are."""
    return (
        {"settings": settings, "notes": sentences}
        | patients_metadata(listing)
        | {FILES: collection.files}
        | ({FANS: collection.fans} if collection.fans else {})
        | ({FANS_OF_FRAMES: collection.fans_of_frames} if collection.fans_of_frames else {})
        | ({} if aspect is None else {ASPECT: aspect})
    )


def _check(args: argparse.Namespace, out: Path, pseudonyms: Pseudonyms) -> None:
    """Refuse arguments that do not fit together, before any file is read."""
    require_apart(out, args.source, "source")
    steps, known = steps_of(args.region), REGIONS[KINDS[args.command]]
    if foreign := [step for step in steps if isinstance(step, str) and step not in known]:
        raise InputError(
            f"--region of {args.command} must be of {', '.join(known)} or X0,Y0,X1,Y1; got {', '.join(foreign)!r}."
        )
    if len({*steps}) < len(steps) or "whole" in steps[:-1]:
        raise InputError(
            f"--region={args.region} has a part that is never tried: name each once, and whole or X0,Y0,X1,Y1 last."
        )
    if args.keep_ids and pseudonyms.keyed:
        raise InputError(
            f"--keep_ids stores ids unchanged, but a key (--key_file, ${KEY_VARIABLE}) hashes them. Omit one."
        )


def _said_of_links(listing: Listing, naming: Naming) -> list[str]:
    """Return a sentence on links whose files do not exist, with examples."""
    if not listing.dangling:
        return []
    listed = examples(naming.of(0, path) for path in listing.dangling)
    return [f"Ignored {len(listing.dangling):,} link(s) to files that do not exist{listed}."]


def _said_of_lost_splits(listing: Listing, items: Sequence[Item], collection: Collection) -> list[str]:
    """Return a sentence for each split of which all files were left out."""
    given = listing.splits if listing.has_splits else set()
    kept = {split for split, parts in collection.parts.items() if parts}
    lost = [split for split in SPLITS if split in given | {item.split for item in items} and split not in kept]
    return [f"warning: no frame is left for {split}: all of its files were left out." for split in lost]


def _said_of_unread(listing: Listing) -> list[str]:
    """Return a sentence on pictures and clips of the source that this command does not read."""
    if not listing.unread:
        return []
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in sorted(listing.unread.items()))
    images, clips, exams = map(", ".join, (IMAGES, videos.SUFFIXES, dicom.SUFFIXES))
    known = f"`folder` reads {images}, `video` {clips}, `dicom` {exams}"
    others = listing.unread.keys() - {*IMAGES, *videos.SUFFIXES, *dicom.SUFFIXES}
    convert = " Convert the others." if others else ""
    return [f"Ignored {listing.unread.total():,} file(s) in other formats ({kinds}): {known}.{convert}"]


def _said_of_case(listing: Listing) -> list[str]:
    """Return a sentence for each anatomy that is spelt in several ways."""
    return [
        f"Anatomies differ only in case and are different ones: {', '.join(map(repr, group))}. Use one spelling, or "
        "aliases in --taxonomy."
        for group in same_but_for_case({row.anatomy for row in listing.rows} - _gaps(listing))
    ]


def _gaps(listing: Listing) -> frozenset[str]:
    """Return the names that are no anatomy: a table may spell out an empty cell; a folder of that name is a class."""
    return frozenset() if listing.has_classes else GAPS


def _said_of_ids(args: argparse.Namespace, pseudonyms: Pseudonyms) -> list[str]:
    if pseudonyms.keyed:
        return ["Ids of patients and scans are hashes, the same in every dataset made with this key."]
    if args.keep_ids:
        return ["Ids of patients and scans are stored unchanged (--keep_ids)."]
    return ["Ids of patients and scans are numbers, because no key (--key_file) was set to hash them."]


def _plan(
    args: argparse.Namespace, listing: Listing, pseudonyms: Pseudonyms, *, stratified: bool
) -> tuple[Taxonomy, list[Any]]:
    names = [row.anatomy for row in listing.rows]
    unlabelled: frozenset[str] = frozenset()
    gaps = _gaps(listing)
    if args.taxonomy is None:
        taxonomy = found_taxonomy(names, gaps)
    else:
        taxonomy, unlabelled = read_taxonomy(args.taxonomy)
    labels = resolve_names(names, taxonomy, unlabelled, gaps)
    items = make_items(
        listing,
        labels,
        pseudonyms,
        val_share=args.val_share,
        test_share=args.test_share,
        seed=args.seed,
        keep_ids=args.keep_ids,
        stratified=stratified,
    )
    return taxonomy, items


def _store_files(target: Path, collection: Collection, jobs: list[Job], work: Path) -> str:
    """Write the private table of a dataset, and return a sentence on it."""
    try:
        path = write_private_table(target, files_of(collection, jobs, work))
    except OSError as error:
        return f"warning: no private table of source files was written ({in_words(error)})."
    return f"{path} lists the file of each frame: keep it private, it may name patients (--no-keep_paths omits it)."


def _remove_files(target: Path) -> list[str]:
    """Delete the private table of an earlier command, if there is one, and return a sentence on it."""
    try:
        path = remove_private_table(target)
    except OSError as error:
        return [f"warning: {private_table_of(target)} may name patients and cannot be deleted ({in_words(error)})."]
    return [] if path is None else [f"Deleted {path}, which an earlier command wrote: it listed files."]


def _said_of_files(target: Path, args: argparse.Namespace) -> list[str]:
    """Return a sentence on the private table of a dataset that is prepared already: if it lacks, or is unwanted."""
    if args.keep_paths is False:
        return _remove_files(target)
    if not args.keep_paths or private_table_of(target).exists():
        return []
    return ["There is no private table of source files: it is written only when a dataset is prepared (another --out)."]


def _builder(
    args: argparse.Namespace,
    out: Path,
    taxonomy: Taxonomy,
    reading: Reading,
    collection: Collection,
    metadata: Mapping[str, Any],
) -> OwnScans:
    return OwnScans(
        name=args.name,
        features=frame_features(taxonomy, mask_names=reading.mask_names),
        parts={split: parts for split, parts in collection.parts.items() if parts},
        sizes=collection.sizes,
        metadata=metadata,
        data_dir=out,
    )


def _settings(
    args: argparse.Namespace,
    reading: Reading,
    listing: Listing,
    jobs: list[Job],
    pseudonyms: Pseudonyms,
    *,
    stratified: bool,
    aspect: str | None,
) -> dict[str, Any]:
    """Return what the dataset depends on, to compare with an existing one. It names no file."""
    digest = hashlib.sha256(json.dumps([job.name for job in jobs]).encode())
    digest.update(json.dumps([(fault.number, fault.kind) for fault in listing.faults]).encode())
    settings = {
        "command": args.command,
        **reading.described(),
        **({} if aspect is None else {ASPECT: aspect}),
        "skip_bad": args.skip_bad,
        "keyed": pseudonyms.keyed,
        "keep_ids": args.keep_ids,
        "input": digest.hexdigest()[:16],
    }
    if not listing.has_splits:
        settings |= {"val_share": args.val_share, "test_share": args.test_share, "seed": args.seed}
        settings |= {"stratified": True} if stratified else {}
    return settings


def _is_from_before(target: Path, setting: str) -> bool:
    """Whether a dataset that exists was prepared before a setting existed: it keeps its splits and pictures."""
    file = target / "metadata.json"
    try:
        return file.is_file() and setting not in json.loads(file.read_text(encoding="utf-8"))["settings"]
    except Exception:  # of other content, which `_require_same` refuses
        return False


def _require_same(target: Path, settings: Mapping[str, Any]) -> list[str]:
    """Return the notes of an existing dataset.

    Raises:
      InputError: it was made from other files or with other settings, or is incomplete.
    """
    try:
        metadata = open_dataset(target).info.metadata or {}
        was, said = metadata["settings"], metadata["notes"]
    except Exception as error:  # TFDS and protobuf raise many kinds here
        raise InputError(f"{target} exists but is not a complete dataset of this kind. {_REMEDY}") from error
    # What `skip_bad` leaves out follows from the files, which are compared.
    compared = [name for name in {**was, **settings} if name != "skip_bad"]
    changed = [name for name in compared if was.get(name) != settings.get(name)]
    if changed == ["input"]:
        raise InputError(f"{target} was prepared from other files, labels or ids. {_REMEDY}")
    if changed:
        listed = "; ".join(
            f"{name} was {was.get(name)} and is now {settings.get(name)}" for name in changed if name != "input"
        )
        raise InputError(f"{target} was prepared with other settings: {listed}. {_REMEDY}")
    return list(said)


def _say(listing: Listing, faults: Sequence[Fault], falls: Mapping[tuple[str, ...], list[int]], naming: Naming) -> None:
    """List what cannot be used on stderr, one per line; for DICOM without paths, which often name the patient.

    Before that, list which regions had to be tried after which.

    A terminal shows the first of each kind and how many more there are; a file gets all.
    """
    shown = {row.number: row.shown for row in listing.rows}
    for (region, then, kind, detail), numbers in sorted(falls.items()):
        places = examples(naming.of(number, shown[number]) for number in sorted(numbers))
        why = Fault(0, kind, detail)
        print(
            f"--region: {then} instead of {region} for {len(numbers):,} {listing.unit}(s){places}: {why.broken}",
            file=sys.stderr,
        )
    found: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # kind -> (place, detail)
    for fault in faults:
        place = naming.of(fault.number, fault.path or shown.get(fault.number, ""))
        # Of a table on DICOM, a detail may quote a cell.
        quotes = naming.hidden and fault.kind == "bad_cell" and not fault.detail.endswith(" is empty")
        found[fault.kind].append((place, "" if quotes else fault.detail))
    at_most = _LINES_OF_A_KIND if sys.stderr.isatty() else None
    for kind, of_kind in found.items():
        lines = list(_lines_of(kind, of_kind, listing.unit))
        for line in lines[:at_most]:
            print(line, file=sys.stderr)
        if more := len(lines) - len(lines[:at_most]):
            print(f"left out {more:,} more: {WHY[kind]} (2>FILE lists all)", file=sys.stderr)


def _lines_of(kind: str, found: list[tuple[str, str]], unit: str) -> Iterator[str]:
    """Yield a line for each fault of a kind, but one for all copies and for many equal ones of some kinds."""
    by_detail: defaultdict[str, list[str]] = defaultdict(list)
    for place, detail in found:
        by_detail[detail].append(place)
    if kind == "duplicate" and len(found) > 1:
        listed = examples(f"{place} ({detail})" for place, detail in found)
        yield f"left out {len(found):,} {unit}(s): {WHY[kind]}{listed}"
        return
    for place, detail in found:
        places = by_detail[detail]
        if kind not in ("bad_cell", *NO_PART) or len(places) <= EXAMPLES:
            yield f"left out {place}: {Fault(0, kind, detail).rule}"
        elif place == places[0]:
            yield f"left out {len(places):,} {unit}(s): {Fault(0, kind, detail).rule}{examples(places)}"


def _refuse(listing: Listing, faults: list[Fault], usable: bool, report: Path) -> None:
    all_there_are = {fault.number or fault.path for fault in faults} | {row.number for row in listing.rows}
    at_fault = {fault.number or fault.path for fault in faults if fault.kind not in HARMLESS}
    reasons = f"the reasons are listed above and counted in {report}"
    if not usable and len({fault.kind for fault in faults}) == 1:
        why = Fault(0, faults[0].kind).rule
        raise InputError(f"None of {len(all_there_are):,} {listing.unit}(s) can be used, all for one reason: {why}.")
    if not usable:
        raise InputError(f"None of {len(all_there_are):,} {listing.unit}(s) can be used; {reasons}.")
    raise InputError(
        f"{len(at_fault):,} of {len(all_there_are):,} {listing.unit}(s) cannot be used; {reasons}. The dataset is not "
        "prepared yet, but good frames are decoded and kept. Repair the files, or set --skip_bad to leave them out, "
        "and rerun the same command."
    )
