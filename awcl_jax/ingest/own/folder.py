"""Files found in a folder, and the labels that follow from their paths."""

import dataclasses
import re
from pathlib import Path

from awcl_jax.ingest.own.items import Fault, Listing, Row
from awcl_jax.ingest.own.paths import find_files
from awcl_jax.runtime.errors import InputError

SCAN_FROM = ("auto", "folder", "stem")
PATTERN = r"(?P<scan>[^_-]+)"


def list_images(root: Path, suffixes: tuple[str, ...], *, scan_from: str = "auto", pattern: str = PATTERN) -> Listing:
    """List images below folders of classes: `root/class/.../image`.

    The scan does not depend on the class: frames of one scan may be in several. `scan_from` says where it comes from:

    - `folder`: of `root/class/patient/scan/image`, the first folder under the class is the patient, and all folders
      under it are the scan (a single folder is both);
    - `stem`: `pattern` is matched against the beginning of the file name; its group `scan` is the scan and its group
      `patient`, if it has one, the patient. By default the scan is the text before the first `_` or `-`;
    - `auto`: `folder` if every image is in a folder below its class, `stem` if none is.

    Raises:
      InputError: the folder does not exist or has no image, `pattern` is invalid, or `auto` is ambiguous.
    """
    expression = _compile(pattern)
    listing = _find(root, suffixes)
    deep = {row.shown.count("/") > 1 for row in listing.rows}
    if scan_from == "auto" and len(deep) > 1:
        raise InputError(
            f"In {root}, some images are directly in the folder of their class and others in folders below it. Set "
            "--scan_from=folder or --scan_from=stem."
        )
    by_folder = scan_from == "folder" or (scan_from == "auto" and deep == {True})
    rows, listing.rows = listing.rows, []
    for row in rows:
        anatomy, *folders = Path(row.shown).parent.parts or ("",)
        if not anatomy:
            listing.faults.append(Fault(row.number, "no_scan", "it is not in a folder of a class", row.shown))
            continue
        if by_folder:
            scan, patient = "/".join(folders), "".join(folders[:1])
        else:
            match = expression.match(row.path.stem)
            groups = match.groupdict() if match else {}
            patient = groups.get("patient") or ""
            scan = "/".join(filter(None, (patient, groups.get("scan"))))
        if not scan:
            listing.faults.append(Fault(row.number, "no_scan", "", row.shown))
            continue
        listing.rows.append(dataclasses.replace(row, scan=scan, patient=patient, anatomy=anatomy, frame=row.number))
    return listing


def list_clips(root: Path, suffixes: tuple[str, ...]) -> Listing:
    """List videos below a folder: each is a scan; the first folder under `root`, if any, is the patient.

    Raises:
      InputError: the folder does not exist or has no video.
    """
    listing = _find(root, suffixes)
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
    return row.shown.split("/")[0] if "/" in row.shown else ""


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
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--pattern must be a regular expression ({error}); got {pattern!r}.") from error
    if not {"scan", "patient"} & expression.groupindex.keys():
        raise InputError(f"--pattern must have a group (?P<scan>...) or (?P<patient>...); got {pattern!r}.")
    return expression
