"""What the patients of a listing were taken from, and whether someone confirmed it."""

import itertools
import json
from pathlib import Path

from awcl_jax.data.about import PATIENTS, patients_as_json
from awcl_jax.ingest.own.items import Listing
from awcl_jax.runtime.files import write_whole

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
      listing: the files.
      command: the subcommand, whose remedy is named.
      show: whether to name examples; not of DICOM, where they name patients.
    """
    names = dict.fromkeys(row.patient or row.scan or row.shown for row in listing.rows)
    examples = f", such as {', '.join(map(repr, itertools.islice(names, _EXAMPLES)))}" if show and names else ""
    line = (
        f"Patients: {len(names):,} of {len(listing.rows):,} {listing.unit}(s), taken from {listing.patients_from}"
        f"{examples}."
    )
    remedy = "fill in the column patient_id" if "the column patient_id" in listing.patients_from else _REMEDIES[command]
    return line if listing.patients_confirmed else f"{line} If that is wrong, {remedy}."


def describe_patients(listing: Listing) -> str:
    """Return the line at the end of an ingest; it asks for confirmation if the patients are a guess."""
    ask = " If it is right, repeat the command with --patients_confirmed."
    return listing.cause + ask * (not listing.patients_confirmed)


def patients_metadata(listing: Listing) -> dict[str, object]:
    """Return what the dataset stores of this: no name of a file or patient."""
    return {PATIENTS: patients_as_json(listing.patients_from, confirmed=listing.patients_confirmed)}


def store_patients(dataset: Path, listing: Listing) -> None:
    """Store what patients were taken from in a dataset that is prepared; its records stay as they are.

    What was confirmed once stays confirmed.

    Args:
      dataset: its folder, with TFDS's `metadata.json`.
      listing: the files that it was prepared of.
    """
    path = dataset / "metadata.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    listing.patients_confirmed |= before.get(PATIENTS) == patients_as_json(listing.patients_from, confirmed=True)
    if (after := {**before, **patients_metadata(listing)}) != before:
        write_whole(path, json.dumps(after, indent=4, sort_keys=True))
