"""What the stations of an ingest hand to each other."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.images import MAX_PIXELS

WHY = {
    "missing": "no file is there",
    "outside": "it lies outside of the folder that files may come from, or a link leads out of it",
    "special": "it is no regular file",
    "unreadable": "it cannot be read (no permission, or a fault of the disk)",
    "no_bytes": "the file has no bytes",
    "no_image": "it is no image that can be decoded",
    "no_video": "it is no video that can be decoded",
    "no_dicom": "it is no DICOM file that can be read",
    "no_ultrasound": "its modality is not ultrasound (US)",
    "no_pixels": "it holds no picture",
    "no_decoder": "nothing installed decodes its transfer syntax",
    "no_patient": "it names no patient",
    "no_scan": "it names no examination",
    "no_region": "it does not say where the ultrasound region lies, so burnt-in text cannot be masked",
    "no_motion": "too little moves in it to tell the sector from burnt-in text",
    "several_pages": "it holds several pictures",
    "slanted": "it is to be displayed at an angle that is no quarter turn",
    "cut_short": "it is cut short or damaged",
    "bad_tag": "a tag that describes its pixels is missing or not valid",
    "contradiction": "its tags and its pixels contradict each other",
    "too_large": "its picture has more pixels than allowed",
    "bit_depth": "it has more than 8 bits a pixel and says nothing on how to show them",
    "blank": "every pixel has the same value",
    "duplicate": "it is, pixel for pixel, a frame that came before",
    "same_row": "the file or the number of its frame is named twice",
    "two_splits": "its patient is in two splits",
    "bad_cell": "a cell of its row is empty or not of its kind",
    "bad_mask": "its mask does not fit",
    "crash": "decoding it ended the process",
}
"""Kind of a fault -> the rule that was broken. The kinds are all that a report keeps of a fault."""

REMEDIES = {
    "outside": "--root=DIR names another folder",
    "no_image": "PNG, JPEG, BMP, TIFF and WebP are read, and by `ingest video` GIF",
    "no_video": "FFmpeg's formats are read, animated GIF, and TIFF of several pages",
    "several_pages": "give each in a file of its own, or take them as a clip by `ingest video`",
    "no_decoder": "pip install 'awcl_jax[dicom]'",
    "no_patient": "--patient_from=study or folder takes another",
    "no_region": "--region=sector (of clips) or X0,Y0,X1,Y1 masks, --region=whole keeps the picture as it is",
    "no_motion": "--region=X0,Y0,X1,Y1 masks, --region=whole keeps the picture as it is",
    "too_large": "--max_pixels=N allows more",
    "bit_depth": "--window=LOW,HIGH says it",
}


class BadFileError(Exception):
    """A file that cannot be used; the ingest goes on with the others.

    Attributes:
      kind: of `WHY`.
      detail: more for the terminal. It is never stored, and of DICOM it never holds a value.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        assert kind in WHY, kind
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """Something that cannot be used.

    Attributes:
      number: of the row or file; 0 for what has none.
      kind: of `WHY`.
      detail: more for the terminal.
      path: relative to the source, for the terminal.
    """

    number: int
    kind: str
    detail: str = ""
    path: str = ""

    @property
    def rule(self) -> str:
        """One sentence: the rule, the value, the remedy."""
        said = WHY[self.kind] + (f": {self.detail}" if self.detail else "")
        return said + (f" ({REMEDIES[self.kind]})" if self.kind in REMEDIES else "")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """A file, and what the user says of it. An empty text says nothing."""

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


@dataclasses.dataclass(slots=True)
class Listing:
    """The files of a source.

    Attributes:
      rows: one for each, in order.
      faults: what cannot be used.
      ignored: number of files of other kinds.
      unread: of these, endings of pictures and clips that are not read -> number of files.
      unit: what rows are counted in: `file` (by sorted path) or `row` (of a table).
      has_splits: whether the rows say which split they are in.
      named: whether ids of scans and patients are the user's own; else they were read off the files' names.
      advice: what may be wrong with the patients, and the remedy; empty where nothing is.
    """

    rows: list[Row] = dataclasses.field(default_factory=list)
    faults: list[Fault] = dataclasses.field(default_factory=list)
    ignored: int = 0
    unread: Counter[str] = dataclasses.field(default_factory=Counter)
    unit: str = "file"
    has_splits: bool = False
    named: bool = False
    advice: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A file to decode, with the labels of its frames as they are stored."""

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


@dataclasses.dataclass(frozen=True)
class Reading:
    """How files are read.

    Attributes:
      every: of a clip, each so-manieth frame is taken.
      near_duplicate: a frame of a clip that differs less from the last one kept is dropped (see `near.py`).
      region: what of the picture is kept, see `region.py`: `whole`, `tag`, `sector`, or a rectangle (x0, y0, x1, y1)
        in pixels, its last column and row outside.
      window: grey values (low, high) that become 0 and 255; None for 8-bit pictures as they are.
      max_pixels: a picture with more is refused.
      mask_names: what the values of masks mean; without them there are none.
    """

    every: int = 8
    near_duplicate: float = 0.5
    region: str | tuple[int, int, int, int] = "whole"
    window: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    mask_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A decoded frame: grey values, and whether they were made from colours."""

    image: UInt8[np.ndarray, "h w"]
    colour: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """A file that was opened.

    Attributes:
      frames: decodes its pictures from the first on, each time it is called; raises BadFileError.
      region: rectangles (x0, y0, x1, y1) that hold ultrasound, from the file; none where it does not say.
      pixel_mm: edge of a pixel, NaN where the file does not say.
      machine: its maker, empty where the file does not say.
      dropped: names of the tags that were not read.
      region_fault: why what the file says of its regions is of no use.
      remarks: what the report counts its frames under, of `collect.COUNTS`; complete when all frames are decoded.
    """

    frames: Callable[[], Iterator[Picture]]
    region: tuple[tuple[int, int, int, int], ...] = ()
    pixel_mm: float = math.nan
    machine: str = ""
    dropped: tuple[str, ...] = ()
    region_fault: str = ""
    remarks: set[str] = dataclasses.field(default_factory=set)
