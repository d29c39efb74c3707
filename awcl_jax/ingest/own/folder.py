"""Files found in a folder, and the labels that follow from their paths."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.ingest.own.items import Fault, Listing, Row
from awcl_jax.ingest.own.paths import composed, find_files
from awcl_jax.runtime.errors import InputError

SCAN_FROM = ("auto", "folder", "stem")
PATTERN = r"(?P<scan>[^_-]+)"

_SUSPICIOUS = 3  # classes; two may well be of one patient each


def list_images(
    root: Path,
    suffixes: tuple[str, ...],
    *,
    scan_from: str = "auto",
    pattern: str | None = None,
    classes: bool = True,
) -> Listing:
    """List images below folders of classes: `root/class/.../image`.

    The scan does not depend on the class: frames of one scan may be in several. `scan_from` says where it comes from:

    - `folder`: of `root/class/patient/scan/image`, the first folder under the class is the patient, and all folders
      under it are the scan (a single folder is both);
    - `stem`: `pattern` is matched against the beginning of the file name; its group `scan` is the scan and its group
      `patient`, if it has one, the patient. By default the scan is the text before the first `_` or `-`;
    - `auto`: `stem` with a `pattern`; without one `folder` if every image is in a folder below its class, `stem` if
      none is.

    Without `classes` (a table names them) there is no folder of the class: `root/patient/scan/image`, or `root/image`.

    Raises:
      InputError: the folder does not exist or has no image, `pattern` is invalid or would not be used, or `auto` is
        ambiguous.
    """
    if pattern is not None and scan_from == "folder":
        raise InputError(
            "--pattern reads names of files, but --scan_from=folder takes scans from folders. Omit one of them."
        )
    expression = _compile(PATTERN if pattern is None else pattern)
    if pattern is not None:
        scan_from = "stem"
    listing = _find(root, suffixes)
    listing.has_classes = classes
    deep = {row.shown.count("/") > classes for row in listing.rows}
    below = "the folder of their class" if classes else "it"
    if scan_from == "auto" and len(deep) > 1:
        raise InputError(
            f"In {root}, some images are directly in {below} and others in folders below it. Set --scan_from=folder or "
            "--scan_from=stem."
        )
    by_folder = scan_from == "folder" or (scan_from == "auto" and deep == {True})
    if by_folder:
        listing.patients_from = f"the first folder below {'the class' if classes else '--source'}"
        listing.patients_confirmed = scan_from == "folder"
    else:
        listing.patients_from, listing.patients_confirmed = _said_by(expression)
    rows, listing.rows = listing.rows, []
    for row in rows:
        folders = Path(row.shown).parent.parts
        anatomy, folders = (folders[0] if folders else "", folders[1:]) if classes else ("", folders)
        anatomy = composed(anatomy)
        if classes and not anatomy:
            listing.faults.append(Fault(row.number, "no_class", "", row.shown))
            continue
        if by_folder:
            scan, patient = composed("/".join(folders)), composed("".join(folders[:1]))
        else:
            match = expression.match(composed(row.path.stem))
            groups = match.groupdict() if match else {}
            patient = groups.get("patient") or ""
            scan = "/".join(filter(None, (patient, groups.get("scan"))))
        if not scan:
            listing.faults.append(Fault(row.number, "no_scan", "", row.shown))
            continue
        listing.rows.append(dataclasses.replace(row, scan=scan, patient=patient, anatomy=anatomy, frame=row.number))
    if classes:
        listing.remarks += _said_of_classes(listing.rows)
    return listing


def _said_of_classes(rows: Sequence[Row]) -> list[str]:
    """Return a sentence if the folders of classes seem to be those of patients."""
    shown = {(row.anatomy, row.patient or row.scan) for row in rows}
    classes, patients = ({pair[place] for pair in shown} for place in (0, 1))
    if len(classes) < _SUSPICIOUS or not len(shown) == len(classes) == len(patients):
        return []
    text = (
        f"warning: each of the {len(classes):,} folders taken for anatomies has one patient, and no patient is in two. "
        "If folders are patients, put them into one folder in --source, or name anatomies with --labels=TABLE."
    )
    return [text]


def list_clips(root: Path, suffixes: tuple[str, ...], *, pattern: str | None = None) -> Listing:
    """List videos below a folder: each is a scan; the first folder under `root`, if any, is the patient.

    With a `pattern`, the beginning of the file's name says which patient (its group `patient`) and scan (its group
    `scan`; else the clip is the scan) it is of, as in `list_images`, and folders say nothing.

    Raises:
      InputError: the folder does not exist or has no video, or `pattern` does not work.
    """
    expression = None if pattern is None else _compile(pattern)
    listing = _find(root, suffixes)
    if expression is not None:
        listing.patients_from, listing.patients_confirmed = _said_by(expression)
        rows, listing.rows = listing.rows, []
        for row in rows:
            match = expression.match(composed(row.path.stem))
            groups = match.groupdict() if match else {}
            patient, scan = groups.get("patient") or "", groups.get("scan") or ""
            if patient or scan:
                named = "/".join(filter(None, (patient, scan))) if scan else row.shown
                listing.rows.append(dataclasses.replace(row, scan=named, patient=patient, frame=row.number))
            else:
                listing.faults.append(Fault(row.number, "no_scan", "--pattern does not match its name", row.shown))
        return listing
    folders = {"/" in row.shown for row in listing.rows}
    names = {True: "the first folder below --source", False: "each clip"}
    listing.patients_from = " or ".join(names[inside] for inside in sorted(folders, reverse=True))
    listing.rows = [dataclasses.replace(row, scan=row.shown, patient=top_folder(row)) for row in listing.rows]
    return listing


def list_all(root: Path) -> Listing:
    """List every file below a folder.

    Raises:
      InputError: the folder does not exist or is empty.
    """
    return _find(root, None)


def top_folder(row: Row) -> str:
    """Return the folder under the source that a file is in, however deep; empty if it is in none."""
    return composed(row.shown.split("/")[0]) if "/" in row.shown else ""


def _said_by(expression: re.Pattern[str]) -> tuple[str, bool]:
    """What a pattern takes for the patient, and whether it is the user who says that it is one."""
    if "patient" in expression.groupindex:
        return "the group (?P<patient>...) of --pattern", True
    if expression.pattern == PATTERN:
        return "the beginning of the file's name, up to the first - or _", False
    return "the group (?P<scan>...) of --pattern", False


def _find(root: Path, suffixes: tuple[str, ...] | None) -> Listing:
    if not root.is_dir():
        raise InputError(f"The folder {root} does not exist. Set --source to the folder with the files.")
    listing = find_files(root, suffixes)
    if not listing.rows and not listing.faults:
        kinds = f" that ends in {', '.join(suffixes)}" if suffixes else ""
        raise InputError(f"{root} has no file{kinds} ({listing.ignored:,} others).")
    return listing


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(composed(pattern))
    except re.error as error:
        raise InputError(f"--pattern must be a regular expression ({error}); got {pattern!r}.") from error
    if not {"scan", "patient"} & expression.groupindex.keys():
        raise InputError(f"--pattern must have a group (?P<scan>...) or (?P<patient>...); got {pattern!r}.")
    return expression
