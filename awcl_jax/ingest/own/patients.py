"""What the patients of a listing were taken from, and whether someone confirmed it."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from awcl_jax.data.about import PATIENTS, patients_as_json, read_metadata
from awcl_jax.data.scans import ScanIndex
from awcl_jax.ingest.own.collect import Collection
from awcl_jax.ingest.own.items import Item, Listing, Row
from awcl_jax.ingest.own.label_table import OR_WITHOUT
from awcl_jax.ingest.own.labels import same_but_for_case
from awcl_jax.ingest.own.privacy import Naming
from awcl_jax.runtime.files import write_whole

FILES = "files"
"""Key of the dataset's metadata: number of files that its frames are from."""

_EXAMPLES = 3
_REMEDIES = {
    "manifest": "add a column patient_id",
    "folder": "use --pattern with a group (?P<patient>...), or a folder for each patient below the class",
    "video": "use --pattern with a group (?P<patient>...), a folder for each patient, or a table with patient_id",
    "dicom": "use --patient_from, or a table with patient_id",
}


def taken_for_patients(listing: Listing, *, command: str, show: bool) -> str:
    """Return what was taken for the patients, with examples, and the remedy if that is a guess, in one line.

    It is for the terminal alone: examples are names of files and cells of tables, which are not stored.

    Args:
      listing: the files, of which some may not be used.
      command: the subcommand, whose remedy is named.
      show: whether to name examples; not of DICOM, where they name patients.
    """
    of = f"{len(listing.rows):,} {listing.unit}(s)"
    return _line(listing, listing.rows, of=of, command=command, show=show)


def describe_patients(listing: Listing, items: Sequence[Item], dataset: ScanIndex, *, command: str, show: bool) -> str:
    """Return the line at the end of an ingest: that of `taken_for_patients`, of what is in the dataset.

    It asks for confirmation if the patients are a guess.

    Args:
      listing: the files.
      items: those that were to be stored.
      dataset: what is stored; one of an earlier version does not record its number of files.
      command: as of `taken_for_patients`.
      show: likewise.
    """
    patients = set(dataset.patient_names)
    stored = {item.number for item in items if item.patient_id in patients}
    files = read_metadata(dataset.path).get(FILES)
    of = f"{len(dataset):,} frame(s)" if files is None else f"{files:,} {listing.unit}(s)"
    rows = [row for row in listing.rows if row.number in stored]
    line = _line(listing, rows, of=f"{of} in the dataset", command=command, show=show)
    if listing.patients_confirmed:
        return line
    right = "they do not" if OR_WITHOUT in listing.patients_from else "it is right"
    return f"{line} If {right}, repeat the command with --patients_confirmed."


def _line(listing: Listing, rows: Sequence[Row], *, of: str, command: str, show: bool) -> str:
    names = dict.fromkeys(map(_name, rows))
    examples = f", such as {', '.join(map(repr, itertools.islice(names, _EXAMPLES)))}" if show and names else ""
    line = f"Patients: {len(names):,} of {of}, taken from {listing.patients_from}{examples}."
    if listing.patients_confirmed:
        return line
    if OR_WITHOUT in listing.patients_from:
        return f"{line} If these name one patient differently, fill in the column patient_id."
    return f"{line} If that is wrong, {_REMEDIES[command]}."


def _name(row: Row) -> str:
    return row.patient or row.scan or row.shown


def alike_but_for_case(listing: Listing, naming: Naming) -> list[str]:
    """Return a sentence for the terminal if patients differ only in case, with an example unless names are hidden."""
    groups = same_but_for_case(row.patient or row.scan for row in listing.rows)
    if not groups:
        return []
    count = sum(map(len, groups))
    example = "" if naming.hidden else f", such as {' and '.join(map(repr, groups[0][:2]))}"
    return [
        (
            f"warning: {count:,} patients differ from others only in case and are different ones{example}. Use one "
            "spelling, or a table with patient_id."
        )
    ]


def copies_of_others(listing: Listing, collection: Collection, naming: Naming | None = None) -> list[str]:
    """Return a sentence if copies of a frame had different patients, which are a guess.

    Args:
      listing: the files.
      collection: what was kept of them.
      naming: names the files of an example, for the terminal; None omits the example, for what a dataset stores.
    """
    if collection.example is None:
        return []
    shown = ""
    if naming is not None:
        rows = {row.number: row for row in listing.rows}
        lost, kept = (
            naming.of(number, rows[number].shown) + f" (patient {_name(rows[number])!r})" * (not naming.hidden)
            for number in collection.example
        )
        shown = f", such as {lost}, a copy of {kept}"
    return [
        (
            f"warning: {collection.across:,} of the repeated frame(s) were of another patient than the kept one{shown}."
            f" As patients are a guess from {listing.patients_from}, one patient may have two names."
        )
    ]


def patients_metadata(listing: Listing) -> dict[str, object]:
    """Return what a dataset stores of its patients: no name of a file or patient."""
    return {PATIENTS: patients_as_json(listing.patients_from, confirmed=listing.patients_confirmed)}


def store_patients(dataset: Path, source: str, *, confirmed: bool) -> bool:
    """Store what patients were taken from in a dataset that is prepared; its records stay as they are.

    What was confirmed once stays confirmed.

    Args:
      dataset: its folder, with TFDS's `metadata.json`.
      source: what they were taken from.
      confirmed: whether someone confirms it now.

    Returns:
      whether it is confirmed, now or earlier.
    """
    path = dataset / "metadata.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    confirmed |= before.get(PATIENTS) == patients_as_json(source, confirmed=True)
    if (after := {**before, PATIENTS: patients_as_json(source, confirmed=confirmed)}) != before:
        write_whole(path, json.dumps(after, indent=4, sort_keys=True))
    return confirmed
