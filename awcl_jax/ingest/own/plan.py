"""Plan of what to decode: stored ids, a split for every patient, and jobs of a few files each."""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from awcl_jax import __version__
from awcl_jax.data.anatomy import UNLABELLED, Taxonomy
from awcl_jax.ingest.own import dicom
from awcl_jax.ingest.own.items import Fault, Item, Listing, Reading, Row
from awcl_jax.ingest.own.manifest import SPLITS
from awcl_jax.ingest.own.privacy import Pseudonyms
from awcl_jax.ingest.own.region import steps_of
from awcl_jax.ingest.own.stratify import Kind, stratify
from awcl_jax.runtime.errors import InputError

UNSPLIT = "have no split in the table and train."
_FORMAT = 2  # a new number when the content of a chunk changes
_SECTOR_FORMAT = 3  # likewise for chunks with a search for sectors
# Files and bytes of a job at most: seconds of work, so that processes that share some hundred clips end together.
_MOST = {"image": (64, 64 << 20), "video": (8, 64 << 20), "dicom": (64, 16 << 20)}
# What one processor decodes in a second, of pictures and clips of usual size. MiB of DICOM, by how pixels are packed,
# are those of the frames that are kept.
_FILES = {"image": 220, "video": 10, "dicom": 100}
_MIB = {"image": 16, "video": 2, "none": 90, "rle": 42, "jpeg2000": 4, "other": 8}


@dataclasses.dataclass(frozen=True)
class Job:
    """Files of one split that are decoded together.

    Attributes:
      name: a digest of all that its result depends on: files, labels, and how they are read. It reveals no file name.
      kind: `image`, `video` or `dicom`.
      items: the files.
      reading: how they are read.
      taxonomy: of their labels.
    """

    name: str
    kind: str
    items: tuple[Item, ...]
    reading: Reading
    taxonomy: Taxonomy

    def seconds(self) -> float:
        """Estimate how long one processor decodes it, by the number of its files and their bytes."""
        what = dicom.packing_of(self.items[0].path) if self.kind == "dicom" else self.kind
        read = sum(_size(item) for item in self.items) / (self.reading.every if self.kind == "dicom" else 1)
        return max(len(self.items) / _FILES[self.kind], read / (_MIB[what] << 20))


def make_items(
    listing: Listing,
    labels: Mapping[str, tuple[int, int]],
    pseudonyms: Pseudonyms,
    *,
    val_share: float,
    test_share: float,
    seed: int,
    keep_ids: bool = False,
    stratified: bool = True,
) -> list[Item]:
    """Return the files to store, ordered by split, patient, scan and frame.

    Without scan names, each file is a scan; without patient names, each scan counts as a separate patient. Ids are
    hashed if there is a key, and otherwise replaced by numbers in the order of the files. Patients in two splits are
    added to the faults and left out.

    Args:
      listing: the files; the faults found here are added to it.
      labels: fine and coarse label of each anatomy name.
      pseudonyms: hashes ids.
      val_share: share of validation patients, if the listing has no splits.
      test_share: share of test patients.
      seed: of the random split.
      keep_ids: store the user's ids unchanged, but not those read from file names.
      stratified: spread the anatomies over the splits; False draws as datasets of earlier versions were drawn.

    Raises:
      InputError: the shares leave no training patient.
    """
    kept = keep_ids and listing.named
    scans, patients = _Ids("scan", pseudonyms, kept), _Ids("patient", pseudonyms, kept)
    rows = []
    for row in listing.rows:
        scan = row.scan or row.shown
        patient = patients.of(row.patient or scan, named=bool(row.patient or row.scan))
        rows.append((row, scans.of(scan, named=bool(row.scan)), patient))
    if listing.has_splits:
        splits = _given_splits(rows, listing)
    else:
        left_out = (
            f"{len(listing.faults):,} {listing.unit}(s) cannot be used, as listed above." if listing.faults else ""
        )
        advice = " ".join(filter(None, (left_out, listing.cause, listing.advice)))
        names = {patient for _, _, patient in rows}
        shown = _anatomies_of(rows, labels) if stratified else {}
        splits = draw_splits(names, shown, val_share=val_share, test_share=test_share, seed=seed, advice=advice)
    items = [
        Item(
            row.number,
            row.path,
            scan,
            patient,
            splits[patient],
            row.frame,
            *labels[row.anatomy],
            machine=row.machine,
            mask=row.mask,
            pixel_mm=row.pixel_mm,
            region=row.region,
            listed=row.listed,
            stated=row.stated,
        )
        for row, scan, patient in rows
        if patient in splits
    ]
    return sorted(items, key=lambda i: (SPLITS.index(i.split), i.patient_id, i.scan_id, i.frame, i.number))


def _anatomies_of(rows: Sequence[tuple[Row, str, str]], labels: Mapping[str, tuple[int, int]]) -> dict[str, set[Kind]]:
    """The anatomies of each patient with a label, as fine and coarse label."""
    shown: dict[str, set[Kind]] = defaultdict(set)
    for row, _, patient in rows:
        if max(labels[row.anatomy]) != UNLABELLED:
            shown[patient].add(labels[row.anatomy])
    return shown


class _Ids:
    """Replaces ids by what is stored."""

    def __init__(self, kind: str, pseudonyms: Pseudonyms, kept: bool) -> None:
        self._kind, self._pseudonyms, self._kept = kind, pseudonyms, kept
        self._numbers: dict[str, int] = {}

    def of(self, name: str, *, named: bool) -> str:
        if self._kept and named:
            return name
        if self._pseudonyms.keyed:
            return self._pseudonyms.digest(self._kind, name)
        return f"{self._kind}{self._numbers.setdefault(name, len(self._numbers) + 1):06d}"


def _given_splits(rows: Sequence[tuple[Row, str, str]], listing: Listing) -> dict[str, str]:
    """Return the split of each patient: none for one in two splits, `train` where no row of the patient has one."""
    found: dict[str, dict[str, int]] = {}
    for row, _, patient in rows:
        of_patient = found.setdefault(patient, {})
        if row.split:
            of_patient.setdefault(row.split, row.number)
    for of_patient in found.values():
        if len(of_patient) > 1:
            places = " and ".join(f"{split} in {listing.unit} {number}" for split, number in of_patient.items())
            listing.faults.append(Fault(max(of_patient.values()), "two_splits", places))
    if unsplit := sum(not splits for splits in found.values()):
        listing.notes.append(f"{unsplit:,} of {len(found):,} patient(s) {UNSPLIT}")
    return {patient: next(iter(splits), "train") for patient, splits in found.items() if len(splits) <= 1}


def draw_splits(
    patients: set[str],
    shown: Mapping[str, Set[Kind]],
    *,
    val_share: float,
    test_share: float,
    seed: int,
    advice: str = "",
) -> dict[str, str]:
    """Draw a split for each patient from the seed, the patient's id, and the anatomies that all of them show.

    A share is rounded to whole patients; a share above 0 has at least one.

    Args:
      patients: their ids.
      shown: patient -> the anatomies that they show, see `stratify`.
      val_share: share of validation patients.
      test_share: share of test patients.
      seed: of the draw.
      advice: added to the message if no training patient is left.

    Raises:
      InputError: a share is out of range, or no training patient is left.
    """
    if not (0 <= val_share < 1 and 0 <= test_share < 1 and val_share + test_share < 1):
        raise InputError(
            f"--val_share and --test_share must be >= 0 and their sum below 1; got {val_share} and {test_share}."
        )
    test, val = (max(round(share * len(patients)), int(share > 0)) for share in (test_share, val_share))
    if patients and test + val >= len(patients):
        raise InputError(
            f"{len(patients)} patient(s) cannot be split: {test} for test and {val} for validation leave none for "
            "training. Lower --test_share and --val_share, or add patients." + (f" {advice}" if advice else "")
        )
    drawn = sorted(patients, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest())
    return stratify(drawn, shown, test=test, val=val)


def make_jobs(
    items: Sequence[Item], pseudonyms: Pseudonyms, *, kind: str, reading: Reading, taxonomy: Taxonomy
) -> list[Job]:
    """Group neighbouring files of one split into jobs of about a second.

    A job has at most 64 files, or 8 videos, and 64 MB, or 16 MB of DICOM, unless one file is larger.
    """
    return [
        Job(_name(group, pseudonyms, kind, reading, taxonomy), kind, tuple(group), reading, taxonomy)
        for group in _groups(items, *_MOST[kind])
    ]


def _groups(items: Sequence[Item], files: int, most: int) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        item_size = _size(item)
        full = len(group) == files or (group and size + item_size > most)
        if group and (full or group[0].split != item.split):
            yield group
            group, size = [], 0
        group.append(item)
        size += item_size
    if group:
        yield group


def _size(item: Item) -> int:
    try:
        return item.path.stat().st_size
    except OSError:  # reported when the file is opened
        return 0


def _name(group: Sequence[Item], pseudonyms: Pseudonyms, kind: str, reading: Reading, taxonomy: Taxonomy) -> str:
    files = [[i.scan_id, i.patient_id, i.split, i.fine, i.coarse, i.machine, i.pixel_mm, *_state(i)] for i in group]
    for of_file, item in zip(files, group, strict=True):
        of_file.extend(item.region or ())  # nothing where there is none, as before there was such a column
    form = _SECTOR_FORMAT if {"sector", "tag", "frame"} & {*steps_of(reading.region)} else _FORMAT
    what = [form, __version__, kind, reading.described(), list(taxonomy.groups.items()), files]
    return pseudonyms.digest("chunk", json.dumps(what, default=str))


def _state(item: Item) -> Iterator[object]:
    """Yield which file it is, and when it last changed."""
    for path in filter(None, (item.path, item.mask)):
        try:
            status = path.stat()
        except OSError:
            yield from (str(path), "missing")
        else:
            yield from (str(path), status.st_size, status.st_mtime_ns)
