"""List the files of a source, for each subcommand that reads your own scans."""

import argparse
import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from awcl_jax.data.images import IMAGES, TABLES, ColumnError
from awcl_jax.ingest.own import dicom, folder, videos
from awcl_jax.ingest.own.items import BadFileError, Fault, Listing, Row
from awcl_jax.ingest.own.label_table import NAMED_BY_TABLE, LabelTable, add_labels, spread_patients
from awcl_jax.ingest.own.manifest import COLUMNS, read_manifest
from awcl_jax.ingest.own.privacy import KEY_VARIABLE, Naming, Pseudonyms
from awcl_jax.runtime.bar import Bar
from awcl_jax.runtime.errors import InputError

_MANY_SCANS = 3  # of one patient: from here on its id is suspicious
_PATIENTS_FROM = {
    "tag": "the tag PatientID",
    "study": "each examination",
    "folder": "the first folder below --source",
}


def list_manifest(args: argparse.Namespace, pseudonyms: Pseudonyms) -> Listing:
    """Return the images that a table lists.

    Raises:
      InputError: the table is damaged, or has masks without names of their values, or names without masks.
    """
    del pseudonyms
    listing = read_manifest(args.source, root=args.root, required=("path", "scan_id"), names=args.columns)
    if listing.has_masks != bool(args.mask_names):
        raise InputError(
            "--mask_names=NAME,NAME,... must name the values 0, 1, ... of the masks, which are in the column `mask` of "
            f"{args.source}; got {'masks without names' if listing.has_masks else 'names without masks'}."
        )
    return listing


def list_folder(args: argparse.Namespace, pseudonyms: Pseudonyms) -> Listing:
    """Return the images in a folder and below, with the labels of `--labels`.

    Raises:
      InputError: there are none, or `--pattern` or the table of labels does not fit their names.
    """
    table = _labels(args)
    classes = table is None or "anatomy" not in table.columns
    listing = folder.list_images(args.source, IMAGES, scan_from=args.scan_from, pattern=args.pattern, classes=classes)
    if table is not None:
        _add_labels(args, pseudonyms, listing, table)
    return listing


def list_videos(args: argparse.Namespace, pseudonyms: Pseudonyms) -> Listing:
    """Return the clips in a folder and below, with the labels of `--labels`, or those that a table lists.

    Raises:
      InputError: PyAV is not installed, there are no clips, or `--pattern` or the table does not fit.
    """
    videos.require_av()
    table = _labels(args)
    if args.source.is_dir():
        listing = folder.list_clips(args.source, videos.SUFFIXES, pattern=args.pattern)
        if table is not None:
            _add_labels(args, pseudonyms, listing, table)
        return listing
    if args.pattern is not None:
        raise InputError(f"--pattern reads names of files in a folder; {args.source} is not one. Omit --pattern.")
    columns = tuple(name for name in COLUMNS if name not in ("mask", "frame"))
    return read_manifest(args.source, root=args.root, columns=columns, names=args.columns)


def list_dicom(args: argparse.Namespace, pseudonyms: Pseudonyms) -> Listing:
    """Return the DICOM files in a folder and below, or those that a table lists.

    Raises:
      InputError: pydicom is not installed, there is no key for ids, or no DICOM file.
    """
    dicom.require_pydicom()
    if not pseudonyms.keyed:
        raise InputError(
            f"DICOM needs a key to hash ids with: set --key_file=FILE or the variable {KEY_VARIABLE}. Make one with "
            "`(umask 077; openssl rand -hex 32 > KEY_FILE)`, and keep it, apart from the dataset."
        )
    stated: dict[int, str] = {}
    table = _labels(args)
    if args.source.is_dir():
        listing = folder.list_all(args.source)
        wanted = [row for row in Bar(listing.rows, desc="Looking", unit=" files") if dicom.is_dicom(row.path)]
        if others := len(listing.rows) - len(wanted):
            listing.ignored += others
            listing.remarks.append(f"Ignored {others:,} file(s) that are not DICOM.")
        listing.rows = [dataclasses.replace(row, number=place) for place, row in enumerate(wanted, 1)]
        if not wanted and not listing.faults:
            raise InputError(f"{args.source} has no DICOM file ({listing.ignored:,} others).")
        listing.patients_from = _PATIENTS_FROM[args.patient_from]
        if table is not None:
            _add_labels(args, pseudonyms, listing, table)
        stated = {row.number: row.patient for row in listing.rows if row.patient}
    else:
        listing = _list_dicom_table(args)
    rows, listing.rows = listing.rows, []
    scans: defaultdict[str, set[str]] = defaultdict(set)
    for row in Bar(rows, desc="Reading ids", unit=" files"):
        try:
            identified = _identified(row, args.patient_from)
        except BadFileError as error:
            listing.faults.append(Fault(row.number, error.kind, error.detail, path=row.shown))
            continue
        listing.rows.append(identified)
        scans["" if row.patient else identified.patient].add(identified.scan)
    spread_patients(listing, stated)
    if stated and all(row.stated for row in listing.rows):  # some by another file of their examination
        listing.patients_from, listing.patients_confirmed = NAMED_BY_TABLE, True
    if not listing.patients_confirmed:  # by a table
        listing.patients_from = listing.patients_from if stated else _PATIENTS_FROM[args.patient_from]
        listing.patients_confirmed = args.patient_from != "study" and not stated
    if args.patient_from == "tag":
        scans.pop("", None)
        if advice := _advice(scans):
            listing.advice, listing.patients_confirmed = advice, False
    return listing


def _advice(scans: Mapping[str, set[str]]) -> str:
    """Return advice if one PatientID names most examinations, as in anonymised files; else nothing."""
    most = max(map(len, scans.values()), default=0)
    total = sum(map(len, scans.values()))
    if most < _MANY_SCANS or 2 * most <= total:
        return ""
    return (
        f"One PatientID names {most:,} of {total:,} examinations. If it is not that of one patient (but ANONYMOUS, for "
        "example), use --patient_from=study or folder."
    )


def _list_dicom_table(args: argparse.Namespace) -> Listing:
    columns = tuple(name for name in COLUMNS if name not in ("machine", "mask", "pixel_mm", "frame"))
    with _without_cells(args, args.source):
        return read_manifest(args.source, root=args.root, columns=columns, names=args.columns)


@contextlib.contextmanager
def _without_cells(args: argparse.Namespace, table: Path) -> Iterator[None]:
    """Replace errors that quote cells of a table on DICOM, unless `--show_paths` is set."""
    try:
        yield
    except InputError as error:
        if args.command != "dicom" or args.show_paths or (isinstance(error, ColumnError) and error.headed):
            raise
        raise InputError(
            f"{table} is not a table ({', '.join(TABLES)}) with the column `path`. Details are hidden because cells "
            "may name patients; --show_paths shows them, and --columns=path=NAME sets another name."
        ) from None


def _labels(args: argparse.Namespace) -> LabelTable | None:
    """Return the table of `--labels`, if it is set.

    Raises:
      InputError: it cannot be used, or flags do not fit together.
    """
    if args.labels is None:
        if args.columns and args.source.is_dir():
            raise InputError(f"--columns is for a table, but --source={args.source} is a folder. Set --labels.")
        return None
    if not args.source.is_dir():
        raise InputError(
            f"--labels is for a folder, but --source={args.source} is not one. Add the columns to that table."
        )
    with _without_cells(args, args.labels):
        return LabelTable.read(args.labels, args.columns)


def _add_labels(args: argparse.Namespace, pseudonyms: Pseudonyms, listing: Listing, table: LabelTable) -> None:
    def instances() -> Mapping[str, int]:
        if args.command != "dicom":
            return {}
        return {dicom.read_instance(row.path): place for place, row in enumerate(listing.rows)}

    naming = Naming(pseudonyms, args.command == "dicom" and not args.show_paths, listing.unit)
    add_labels(listing, table, root=args.source, instances=instances, naming=naming, skip_bad=args.skip_bad)


def _identified(row: Row, patient_from: str) -> Row:
    """Return the row with the ids of its file where the table has none."""
    patient, study = dicom.read_ids(row.path)
    if not (scan := row.scan or study):
        raise BadFileError("no_scan")
    patient = row.patient or {"tag": patient, "study": scan, "folder": folder.top_folder(row)}[patient_from]
    if not patient:
        raise BadFileError("no_patient")
    return dataclasses.replace(row, scan=scan, patient=patient, frame=row.number)
