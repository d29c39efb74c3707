"""The values that the stages of an ingest pass to each other."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.limits import MAX_PIXELS

WHY = {
    "missing": "the file does not exist",
    "outside": "it is outside the folder that files may come from, or a link leads outside it",
    "special": "it is not a regular file",
    "folder": "it is a folder, not a file",
    "unreadable": "it cannot be read (no permission, or a disk error)",
    "no_bytes": "the file is empty",
    "no_image": "it cannot be decoded as an image",
    "no_video": "it cannot be decoded as a video",
    "no_dicom": "it cannot be read as a DICOM file",
    "no_ultrasound": "its modality is not ultrasound (US)",
    "no_pixels": "it contains no picture",
    "no_decoder": "no installed package decodes its transfer syntax",
    "no_patient": "it has no patient id",
    "no_scan": "it has no examination id",
    "no_class": "it is not in a folder of a class",
    "no_region": "it does not say where its ultrasound region is, so burnt-in text cannot be masked",
    "no_motion": "too little moves in it to separate the sector from burnt-in text",
    "no_sector": "no sector is found in its first frame",
    "several_pages": "it contains several pictures",
    "slanted": "its display angle is not a multiple of 90 degrees",
    "cut_short": "it is truncated or damaged",
    "bad_tag": "a tag that describes its pixels is missing or invalid",
    "contradiction": "its tags and its pixels contradict each other",
    "too_large": "it has more pixels than allowed",
    "bit_depth": "it has more than 8 bits per pixel and does not say how to display them",
    "blank": "every pixel has the same value",
    "duplicate": "it repeats another frame pixel for pixel",
    "conflict": "it repeats a frame that has another label or patient, so none of these can be trusted",
    "same_row": "its file or frame number is listed twice",
    "two_splits": "its patient is in two splits",
    "two_patients": "its scan is also one of another patient",
    "bad_cell": "a cell of its row is empty or invalid",
    "bad_mask": "its mask cannot be used",
    "crash": "decoding it crashed the process",
}
"""Kind of a fault -> the rule that was broken. A report keeps only the kinds."""

HARMLESS = frozenset({"duplicate"})
"""Kinds that do not stop an ingest: nothing is lost with what is left out."""

REMEDIES = {
    "missing": "--root=DIR sets the folder that paths of a table are relative to",
    "outside": "--root=DIR sets another folder",
    "no_image": "supported: PNG, JPEG, BMP, TIFF and WebP; `ingest video` also reads GIF",
    "no_video": "supported: FFmpeg's formats, animated GIF and multi-page TIFF",
    "several_pages": "save each in a separate file, or read them as a clip with `ingest video`",
    "no_decoder": "pip install 'awcl_jax[dicom]'",
    "no_class": "put it into a folder with the name of its anatomy, or list them with --labels=TABLE",
    "no_patient": "--patient_from=study or folder uses another id",
    "no_region": "--region=tag,sector (clips), tag,sector,frame or X0,Y0,X1,Y1 masks; --region=whole keeps the whole "
    "picture",
    "no_motion": "--region=X0,Y0,X1,Y1 masks, and frame, less safely, after sector; --region=whole keeps the whole "
    "picture",
    "no_sector": "--region=X0,Y0,X1,Y1 masks; --region=whole keeps the whole picture",
    "two_patients": "a table can give each scan its own scan_id, such as P07/1, and all of its files one patient_id",
    "conflict": "correct the labels or remove the copies; --skip_bad leaves all of them out",
    "too_large": "--max_pixels=N allows more",
    "bit_depth": "--window=LOW,HIGH sets it",
}


Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, without column x1 and row y1."""

STEPS = ("tag", "sector", "frame", "whole")
"""Names of regions, see `region.py`."""

_FRAME = "the sector found in each frame alone, which may include large writing"
REGIONS = {
    "image": {"whole": "all of it", "frame": _FRAME},
    "video": {"whole": "all of it", "sector": "what moves", "frame": _FRAME},
    "dicom": {
        "tag": "the sector within the file's SequenceOfUltrasoundRegions, which is required",
        "sector": "what moves, for clips without that tag",
        "frame": _FRAME,
        "whole": "all of it",
    },
}
"""Kind of a file -> parts of its pictures that can be kept, besides a rectangle."""


def steps_of(region: str | Rectangle) -> tuple[str | Rectangle, ...]:
    """Return the regions that are tried in order: names, and at most one rectangle, which is the last."""
    if not isinstance(region, str):
        return (region,)
    parts = region.split(",")
    names = [part for part in parts if part in STEPS]
    numbers = tuple(int(part) for part in parts[len(names) :])
    return (*names, numbers) if len(numbers) == 4 else tuple(names)


class BadFileError(Exception):
    """A file that cannot be used; the ingest continues with the others.

    Attributes:
      kind: a key of `WHY`.
      detail: more for the terminal. It is never stored, and for DICOM it never contains a value.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        assert kind in WHY, kind
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that cannot be used.

    Attributes:
      number: of the row or file; 0 if it has none.
      kind: a key of `WHY`.
      detail: more for the terminal.
      path: relative to the source, for the terminal.
    """

    number: int
    kind: str
    detail: str = ""
    path: str = ""

    @property
    def broken(self) -> str:
        """The rule and the value."""
        return WHY[self.kind] + (f": {self.detail}" if self.detail else "")

    @property
    def rule(self) -> str:
        """One sentence: the rule, the value, the fix."""
        return self.broken + (f" ({REMEDIES[self.kind]})" if self.kind in REMEDIES else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A file and its labels from the user; an empty text is unknown.

    `listed` is whether a table of labels has a row for a file of a folder, and `stated` whether it names its patient.
    """

    number: int
    path: Path
    shown: str
    scan: str
    patient: str = ""
    anatomy: str = ""
    split: str = ""
    machine: str = ""
    mask: Path | None = None
    pixel_mm: float = math.nan
    frame: int = 0
    region: Rectangle | None = None
    listed: bool = False
    stated: bool = False


@dataclasses.dataclass(slots=True)
class Listing:
    """The files of a source.

    Attributes:
      rows: one for each file, in order.
      faults: what cannot be used.
      ignored: number of files of other kinds.
      dangling: paths of links to files that do not exist, which are among these.
      unread: file endings of pictures and clips among these -> number of files.
      unit: what a row is: `file` (by sorted path) or `row` (of a table).
      has_classes: whether anatomies are names of folders, not cells of a table.
      has_splits: whether the rows name their splits.
      splits: those that rows name, also rows that cannot be used.
      has_masks: whether the rows name masks, which need not exist.
      named: whether the user gave the ids of scans and patients; otherwise they come from file names.
      advice: what may be wrong with the patients, and the fix; empty if nothing is.
      patients_from: what was taken for the patient; it names no file and no patient.
      patients_confirmed: whether the user or a tag names the patients; False where they are a guess.
      cause: a line on both for the terminal, with examples (see `patients.taken_for_patients`).
      notes: sentences to store with the dataset; they name no file and no patient.
      remarks: sentences for the terminal alone, with names of files.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    ignored: int = 0
    dangling: list[str] = dataclasses.field(default_factory=list)
    unread: Counter[str] = dataclasses.field(default_factory=Counter)
    unit: str = "file"
    has_classes: bool = False
    has_splits: bool = False
    splits: set[str] = dataclasses.field(default_factory=set)
    has_masks: bool = False
    named: bool = False
    advice: str = ""
    patients_from: str = ""
    patients_confirmed: bool = False
    cause: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A file to decode, with its labels as stored; `listed` and `stated` as of its `Row`."""

    number: int
    path: Path
    scan_id: str
    patient_id: str
    split: str
    frame: int = 0
    fine: int = UNLABELLED
    coarse: int = UNLABELLED
    machine: str = ""
    mask: Path | None = None
    pixel_mm: float = math.nan
    region: Rectangle | None = None
    listed: bool = False
    stated: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      every: keep every n-th frame of a clip.
      near_duplicate: a frame of a clip that differs less from the last one kept is dropped (see `near.py`).
      region: part of the picture to keep, see `region.py`: `whole`, `tag`, `sector`, `frame`, or several, separated by
        commas; or a rectangle (x0, y0, x1, y1) in pixels, without column x1 and row y1.
      crop: cut the picture to that part; False blackens the rest of it, as earlier versions did.
      window: grey values (low, high) that become 0 and 255; None for 8-bit pictures as they are.
      max_pixels: larger pictures are refused.
      mask_names: what the values of masks mean; empty if there are no masks.
    """

    every: int = 8
    near_duplicate: float = 0.5
    region: str | Rectangle = "whole"
    crop: bool = False
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    mask_names: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """Return the fields by name, as plain values; without `crop` where that is off, as in earlier versions."""
        fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in fields.items() if name != "crop" or value}


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame: grey values, and whether they were made from colours."""

    image: UInt8[np.ndarray, "h w"]
    colour: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """An open file.

    Attributes:
      frames: decodes its pictures from the first, each time it is called; raises BadFileError.
      region: rectangles (x0, y0, x1, y1) of ultrasound, from the file; empty if it names none.
      pixel_mm: edge of a pixel; NaN if the file does not state it.
      machine: its maker; empty if the file does not state it.
      dropped: names of the tags that were not read.
      region_fault: why the regions in the file cannot be used.
      remarks: members of `collect.COUNTS` under which the report counts its frames; complete when all are decoded.
    """

    frames: Callable[[], Iterator[Picture]]
    region: tuple[tuple[int, int, int, int], ...] = ()
    pixel_mm: float = math.nan
    machine: str = ""
    dropped: tuple[str, ...] = ()
    region_fault: str = ""
    remarks: set[str] = dataclasses.field(default_factory=set)
