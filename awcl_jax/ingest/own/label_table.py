"""Labels from a table beside a folder of files (`--labels`)."""

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from awcl_jax.data.images import IMAGES, ColumnError
from awcl_jax.ingest.own import dicom, videos
from awcl_jax.ingest.own.items import BadFileError, Fault, Listing, Row
from awcl_jax.ingest.own.manifest import SPLITS, parse_labels, read_columns, rows_of, said_of_unused
from awcl_jax.ingest.own.paths import composed
from awcl_jax.ingest.own.privacy import Naming
from awcl_jax.runtime.errors import InputError

COLUMNS = ("path", "scan_id", "patient_id", "anatomy", "split", "machine", "pixel_mm", "region")
_ENDINGS = tuple(sorted({*IMAGES, *videos.SUFFIXES, *dicom.SUFFIXES}, key=len, reverse=True))
_UID = re.compile(r"[0-2](\.[0-9]+){2,}")
EXAMPLES = 3
NAMED_BY_TABLE = "the column patient_id of --labels"
OR_WITHOUT = ", or without one "
"""Between the two sources of patients where a table names only some of them."""


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The rows of a table of labels.

    Attributes:
      path: of the table.
      columns: of `COLUMNS` that it has.
      rows: number from 1, name of its file, and the other cells as text.
      unused: other columns that it has.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, str, dict[str, str]]]
    unused: Sequence[str] = ()

    @classmethod
    def read(cls, path: Path, names: Mapping[str, str]) -> "LabelTable":
        """Read a table; `names` are those of `manifest.read_manifest`.

        Raises:
          InputError: it cannot be read, or has no column `path`, or nothing else.
        """
        table, unused = read_columns(path, columns=COLUMNS, names=names, flag="--labels")
        if table.column_names == ["path"]:
            raise ColumnError(
                f"--labels={path} must have at least one of the columns {', '.join(COLUMNS[1:])}; it has only path. "
                "--columns=anatomy=NAME uses another name.",
                headed=True,
            )
        rows = [(number, cells.pop("path"), cells) for number, cells in rows_of(table)]
        return cls(path, tuple(table.column_names), rows, unused)


@dataclasses.dataclass(frozen=True)
class Match:
    """Which file a row names.

    Attributes:
      files: position in the listing -> the numbers and cells of its rows.
      unmatched: number and name of the rows that name no file.
      ambiguous: likewise of those that name several.
      by_name: number of rows matched by the end of a path, a file name or a stem, not by the whole path.
      above: folders at the beginning of paths that were taken for those above `root`; empty if none were.
    """

    files: Mapping[int, Sequence[tuple[int, dict[str, str]]]]
    unmatched: list[tuple[int, str]]
    ambiguous: list[tuple[int, str]]
    by_name: int
    above: str = ""


def match(table: LabelTable, shown: Sequence[str], root: Path, instances: Callable[[], Mapping[str, int]]) -> Match:
    """Find the file that each row names.

    A row names a file by its path below `root`; else, if exactly one file fits, by the end of that path (the file name,
    with folders or without), or by the same without the ending of a picture, clip or DICOM file. Upper and lower case
    do not matter there. Of paths that begin above `root`, the beginning is left out, see `_folders_above`.

    Args:
      table: the rows.
      shown: paths of the files, relative to `root`.
      root: their folder.
      instances: SOPInstanceUID -> position of its file; called only if a row may name one.
    """
    exact = {composed(path): place for place, path in enumerate(shown)}
    ends, stems = defaultdict(list), defaultdict(list)
    for place, path in enumerate(shown):
        for end in _ends(composed(path).casefold()):
            ends[end].append(place)
            stems[_stem(end)].append(place)
    files: dict[int, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    unmatched: list[tuple[int, str]] = []
    ambiguous: list[tuple[int, str]] = []
    longer: list[tuple[int, str, dict[str, str]]] = []
    by_name, whole = 0, False
    uids: Mapping[str, int] | None = None
    for number, name, cells in table.rows:
        wanted = _relative(name, root)
        found = [exact[wanted]] if wanted in exact else None
        whole |= found is not None
        if found is None:
            found = ends.get(wanted.casefold()) or stems.get(_stem(wanted.casefold()), [])
            if not found and any(end in exact for end in _ends(wanted)):
                longer.append((number, name, cells))
                continue
            if not found and _UID.fullmatch(_stem(wanted)):
                uids = instances() if uids is None else uids
                found = [uids[_stem(wanted)]] if _stem(wanted) in uids else []
            by_name += len(found) == 1
        if len(found) == 1:
            files[found[0]].append((number, cells))
        else:
            (ambiguous if found else unmatched).append((number, name))
    paths = [_relative(name, root) for _, name, _ in longer]
    above = _folders_above(paths, exact, root, whole=whole)
    for (number, name, cells), path in zip(longer, paths, strict=True):
        if above and (own := path.removeprefix(above)) in exact:
            files[exact[own]].append((number, cells))
            by_name += 1
        else:
            unmatched.append((number, name))
    return Match(files, sorted(unmatched), ambiguous, by_name, above)


def _folders_above(paths: Sequence[str], exact: Collection[str], root: Path, *, whole: bool) -> str:
    """Return the folders, with a slash at the end, that paths of a table have before those below the source.

    A row `P01/0.png` may mean the file `0.png` if the table was made above the source, but not if it merely lacks its
    own file. So the folders must end with the source's name, or else be the same in all of the paths, while no other
    row has the whole path of a file.

    Args:
      paths: of the table, which name a file only without their beginning.
      exact: paths of the files below the source.
      root: the source.
      whole: whether another row has the whole path of a file.
    """
    beginnings = {path.removesuffix(end) for path in paths for end in _ends(path) if end in exact}
    own = [above for above in beginnings if f"/{above}".endswith(f"/{composed(root.absolute().name)}/")]
    if len(own) == 1:
        return own[0]
    common = [above for above in beginnings if all(path.startswith(above) for path in paths)]
    return "" if whole else min(common, key=len, default="")


def add_labels(
    listing: Listing,
    table: LabelTable,
    *,
    root: Path,
    instances: Callable[[], Mapping[str, int]],
    naming: Naming,
    skip_bad: bool,
) -> None:
    """Add the labels of a table to the files of a folder; what is not labelled stays, without a label.

    What the table says of patients and scans replaces what was found. All files of a scan are of the patient that the
    table names for one of them.

    Args:
      listing: the files; faults, notes and remarks are added to it.
      table: the labels.
      root: folder of the files.
      instances: see `match`.
      naming: how files are shown; names in the table are hidden with those of the files.
      skip_bad: leave files without a label whose row fits several, instead of refusing them.

    Raises:
      InputError: there is no file to label, no row names one, or some fit several and `skip_bad` is not set.
    """
    listing.remarks += said_of_unused(table.path, table.unused)
    listing.splits |= {cells.get("split", "").lower() for _, _, cells in table.rows} & {*SPLITS}
    if not listing.rows and listing.faults:
        raise InputError(
            f"None of {len(listing.faults):,} file(s) in {root} can be labelled by --labels={table.path}, the first "
            f"because {listing.faults[0].rule}."
        )
    found = match(table, [row.shown for row in listing.rows], root, instances)
    rows = f"row(s) of {table.path} (numbered from 1 below the heading)"  # a spreadsheet shows one more
    unmatched, ambiguous = (
        [f"row {number}" + f" {name!r}" * (not naming.hidden) for number, name in of_kind]
        for of_kind in (found.unmatched, found.ambiguous)
    )
    if not found.files and not ambiguous:
        files = examples(naming.of(row.number, row.shown) for row in listing.rows)
        raise InputError(
            f"None of {len(table.rows):,} {rows}{examples(unmatched)}, names one of {len(listing.rows):,} file(s) in "
            f"{root}{files}. The column path must have paths relative to --source, or file names (--columns=path=NAME)."
        )
    if ambiguous:
        what = f"{len(ambiguous):,} {rows} fit(s) several files{examples(ambiguous)}"
        if not skip_bad:
            raise InputError(f"{what}. Write paths relative to --source, or set --skip_bad to use none of these rows.")
        listing.remarks.append(f"Labels: {what}. None of them is used.")
    used = len(table.rows) - len(unmatched) - len(ambiguous)
    listing.notes.append(
        f"Labels: {used:,} of {len(table.rows):,} row(s) name one of {len(listing.rows):,} file(s), {found.by_name:,} "
        "by less than its path."
    )
    if found.above:
        above = "their first folders are" if naming.hidden else f"{found.above!r} at their beginning is"
        listing.remarks.append(f"Labels: some paths begin above --source; {above} left out.")
    if unmatched:
        listing.remarks.append(f"Labels: {len(unmatched):,} {rows} name(s) no file{examples(unmatched)}.")
    if without := [row for place, row in enumerate(listing.rows) if place not in found.files]:
        names = examples(naming.of(row.number, row.shown) for row in without)
        listing.remarks.append(f"Labels: {len(without):,} file(s) without a row stay(s) unlabelled{names}.")
    _merge(listing, found.files)


def examples(names: Iterable[str]) -> str:
    """Return three of these names, as the end of a phrase; nothing if there are none."""
    some = [name for name, _ in zip(names, range(EXAMPLES), strict=False)]
    return f", such as {'; '.join(some)}" if some else ""


def spread_patients(listing: Listing, stated: Mapping[int, str]) -> None:
    """Give all files of a scan the patient that the table names for one of them.

    Args:
      listing: the files; a file whose scan has another patient before gets a fault.
      stated: number of a file -> its patient in the table.
    """
    owners: dict[str, str] = {}
    for row in listing.rows:
        if row.number in stated and row.scan:
            owners.setdefault(row.scan, stated[row.number])
    rows, listing.rows = listing.rows, []
    for row in rows:
        owner = owners.get(row.scan, row.patient)
        if stated.get(row.number, owner) != owner:
            fault = "another file of its scan has another patient_id in the table"
            listing.faults.append(Fault(row.number, "bad_cell", fault, row.shown))
        else:
            listing.rows.append(
                dataclasses.replace(row, patient=owner, stated=row.number in stated or row.scan in owners)
            )


def _merge(listing: Listing, files: Mapping[int, Sequence[tuple[int, dict[str, str]]]]) -> None:
    rows, listing.rows = listing.rows, []
    found: list[tuple[Row, dict[str, Any], bool]] = []
    stated: dict[int, str] = {}
    named: dict[str, set[str]] = defaultdict(set)  # scan by the names of folders and files -> patients of its files
    for place, row in enumerate(rows):
        try:
            labels = _labels_of(files.get(place, ()))
        except BadFileError as error:
            listing.faults.append(Fault(row.number, error.kind, error.detail, row.shown))
            continue
        if patient := labels.get("patient"):
            stated[row.number] = patient
            named[row.scan].add(patient)
        found.append((row, labels, place in files))
    alone = {scan: patient for scan, (patient, *others) in named.items() if not others}
    for row, labels, listed in found:
        patient = labels.get("patient") or alone.get(row.scan)
        if patient and row.scan and "scan" not in labels:  # such a name may be of the scans of many patients
            labels["scan"] = f"{patient}/{row.scan}"
        listing.rows.append(dataclasses.replace(row, **labels, listed=listed))
    listing.has_splits = any(row.split for row in listing.rows)
    if stated:
        all_of_them = len(stated) == len(listing.rows)
        # Two sources of names may name one patient twice.
        listing.patients_confirmed = all_of_them
        rest = "" if all_of_them else f"{OR_WITHOUT}{listing.patients_from}"
        listing.patients_from = NAMED_BY_TABLE + rest
    spread_patients(listing, stated)


def _labels_of(rows: Sequence[tuple[int, dict[str, str]]]) -> dict[str, Any]:
    """Return what the rows of a file state.

    Raises:
      BadFileError: a cell is invalid, or two rows differ.
    """
    for number, cells in rows[1:]:
        if cells != rows[0][1]:
            raise BadFileError("same_row", f"rows {rows[0][0]} and {number} of --labels differ")
    labels = parse_labels(rows[0][1]) if rows else {}
    # What is empty (or NaN) leaves what the file or its folder says.
    return {name: value for name, value in labels.items() if value and value == value}


def _relative(name: str, root: Path) -> str:
    plain = composed(name.strip()).replace("\\", "/")
    for folder in (str(root), os.path.abspath(root), os.path.realpath(root)):  # noqa: PTH100  links may be meant
        plain = plain.removeprefix(folder.rstrip("/") + "/") if plain.startswith("/") else plain
    return re.sub(r"^(\./)+|/(?=/)", "", plain)


def _ends(path: str) -> list[str]:
    """Return the path and what is left of it without its first folder, its first two, ..., down to its name."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _stem(name: str) -> str:
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name.removesuffix(name[len(name) - len(ending) :]) if ending else name
