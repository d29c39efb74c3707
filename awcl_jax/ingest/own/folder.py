"""Files found in a folder, and what their place in it says of them."""

import dataclasses
import re
from pathlib import Path

from awcl_jax.ingest.own.items import Fault, Listing, Row
from awcl_jax.ingest.own.paths import find_files
from awcl_jax.runtime.errors import InputError

SCAN_FROM = ("auto", "folder", "stem")
PATTERN = r"(?P<scan>[^_-]+)"


def list_images(root: Path, suffixes: tuple[str, ...], *, scan_from: str = "auto", pattern: str = PATTERN) -> Listing:
    """Images below folders of classes: `root/class/.../image`.

    The scan does not depend on the class: frames of one scan may lie in several. It is told

    - by `folder`: of `root/class/patient/scan/image`, the first folder under the class is the patient, all folders
      under it are the scan (with one folder, that is both);
    - by `stem`: `pattern` is matched against the beginning of the file's name, its group `scan` is the scan and its
      group `patient`, where it has one, the patient. By default the scan is what comes before the first `_` or `-`;
    - by `auto`: by folder if every image lies below another folder than its class, by stem if none does.

    Raises:
      InputError: there is no such folder, no image is in it, `pattern` does not work, or `auto` cannot tell.
    """
    expression = _compile(pattern)
    listing = _find(root, suffixes)
    deep = {row.shown.count("/") > 1 for row in listing.rows}
    if scan_from == "auto" and len(deep) > 1:
        raise InputError(
            f"In {root}, some images lie in a folder of their class and others below: say with --scan_from=folder or "
            "--scan_from=stem what names a scan."
        )
    by_folder = scan_from == "folder" or (scan_from == "auto" and deep == {True})
    rows, listing.rows = listing.rows, []
    for row in rows:
        anatomy, *folders = Path(row.shown).parent.parts or ("",)
        if not anatomy:
            listing.faults.append(Fault(row.number, "no_scan", "it lies in no folder of a class", row.shown))
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
    """Videos below a folder: each is a scan; the first folder under `root`, where there is one, is the patient.

    Raises:
      InputError: there is no such folder, or no video is in it.
    """
    listing = _find(root, suffixes)
    listing.rows = [dataclasses.replace(row, scan=row.shown, patient=top_folder(row)) for row in listing.rows]
    return listing


def list_all(root: Path) -> Listing:
    """Every file below a folder.

    Raises:
      InputError: there is no such folder, or nothing is in it.
    """
    return _find(root, None)


def top_folder(row: Row) -> str:
    """The folder under the source that a file lies in, however deep; empty where it lies in none."""
    return row.shown.split("/")[0] if "/" in row.shown else ""


def _find(root: Path, suffixes: tuple[str, ...] | None) -> Listing:
    if not root.is_dir():
        raise InputError(f"There is no folder {root}: --source is the folder that holds the files.")
    listing = find_files(root, suffixes)
    if not listing.rows and not listing.faults:
        kinds = f" that ends in {', '.join(suffixes)}" if suffixes else ""
        raise InputError(f"{root} holds no file{kinds} ({listing.ignored:,} others).")
    return listing


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--pattern is no regular expression ({error}): {pattern!r}.") from error
    if not {"scan", "patient"} & expression.groupindex.keys():
        raise InputError(f"--pattern has a group (?P<scan>...) or (?P<patient>...); got {pattern!r}.")
    return expression
