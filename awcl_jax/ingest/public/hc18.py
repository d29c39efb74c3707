"""HC18: fetal heads with their outline, in the publisher's layout, as a TFDS dataset.

training_set/NNN_HC.png, NNN_2HC.png, ...      frames of study NNN
training_set/NNN_HC_Annotation.png             the head's outline, a line one pixel wide
training_set_pixel_size_and_HC.csv             pixel size and head circumference in millimetres

The publisher's test set has no outlines: the training set is split here, by study, because frames of one study (010_HC,
010_2HC) look much alike. The publication counts 551 women in 1,334 images but does not say which studies belong to the
same woman: scan and patient are the study.
"""

import functools
import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Shaped, UInt8

from awcl_jax.data.anatomy import HC18
from awcl_jax.data.png import png_size, read_grey, read_png, require_size
from awcl_jax.data.record import HEAD_CIRCUMFERENCE, frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, draw_split, record_of, require_folder
from awcl_jax.ingest.public.tables import length_mm, read_table
from awcl_jax.runtime.errors import InputError

FOLDER, CSV_NAME = "training_set", "training_set_pixel_size_and_HC.csv"
MASKS = ("background", "head")

_FILE, _PIXEL_SIZE, _CIRCUMFERENCE = "filename", "pixel size(mm)", "head circumference (mm)"
_NAME = re.compile(r"(?P<study>\d+)_(?P<number>\d*)HC(?P<outline>_Annotation)?(?i:\.png)", re.ASCII)
_AGREEMENT = 0.9  # least overlap (intersection over union) of a fill with the ellipse; real ones have 0.99

_CITATION = """\
@article{vandenheuvel2018,
  title = {Automated measurement of fetal head circumference using {2D} ultrasound images},
  author = {van den Heuvel, Thomas L. A. and de Bruijn, Dagmar and de Korte, Chris L. and van Ginneken, Bram},
  journal = {PLoS ONE},
  volume = {13},
  number = {8},
  pages = {e0200412},
  year = {2018},
  doi = {10.1371/journal.pone.0200412},
}"""


class Hc18(FolderBuilder):
    """TFDS builder of HC18's training set; see `awcl_jax.data.record` for the record, `FolderBuilder` to make.

    Masks are the head, filled; `hc_mm` is the published circumference, NaN where the CSV has none.
    """

    HOMEPAGE = "https://zenodo.org/records/1327317"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The publisher's training set, split by study."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Fetal heads in the standard plane of head circumference, with the head as a mask and its "
            "circumference. Of the publisher's training set, split 70/10/20 by study; a study counts as a patient.",
            features=frame_features(HC18, mask_names=MASKS, measures=(HEAD_CIRCUMFERENCE,)),
            license="CC BY 4.0",
            citation=_CITATION,
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        sizes = _read_sizes(source)
        folder = require_folder(source / FOLDER, f"{FOLDER}/ and {CSV_NAME}")
        images, outlines = _list(folder)
        whole = [name for name in images if name in outlines]
        missing = sorted({*sizes, *images} - set(whole))
        accept_missing(
            [f"{name}.png" for name in missing],
            found=whole,
            skip=self.skip_missing,
            what=f"{source} lacks the image or the outline (..._Annotation.png) of {len(missing):,} frame(s)",
        )
        return [
            Found(
                name,
                study_of(name),
                draw_split(study_of(name)),
                functools.partial(_record, name, images[name], outlines[name], *sizes.get(name, (math.nan, math.nan))),
            )
            for name in whole
        ], missing


def study_of(frame_id: str) -> str:
    """Return the study of a frame: the frames 010_HC and 010_2HC belong to study 010."""
    return frame_id.partition("_")[0]


def fill_outline(outline: Shaped[np.ndarray, "h w"], place: str) -> Bool[np.ndarray, "h w"]:
    """Return the head within its outline, including the line.

    The line cuts the picture into areas; the border closes an outline that extends beyond the picture. Areas in the
    ellipse fitted to the line (Fitzgibbon et al. 1999) are the head. If the result is not near the ellipse, because
    the line has gaps, the head is the ellipse, which is what sonographers draw.

    Args:
      outline: not 0 on the line; a filled region is unchanged.
      place: of the file, for the message.

    Raises:
      InputError: there is no outline of an ellipse.
    """
    line = outline != 0
    contours, _ = cv2.findContours(line.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    ellipse = np.zeros(line.shape, np.uint8)
    if contours and sum(map(len, contours)) >= 5:
        centre, axes, turn = cv2.fitEllipseDirect(np.concatenate(contours))
        if all(map(math.isfinite, (*centre, *axes, turn))) and min(axes) >= 2 and max(axes) < 4 * max(line.shape):
            cv2.ellipse(ellipse, (centre, axes, turn), color=1, thickness=-1)
    if not ellipse.any():
        raise InputError(f"{place} has no outline of a head: no ellipse fits its {int(line.sum())} pixel(s).")
    inside = ellipse != 0
    # 4-connected, so that background does not leak through the line where its pixels touch only at a corner.
    count, areas = cv2.connectedComponents((~line).astype(np.uint8), connectivity=4)
    total = np.bincount(areas.ravel(), minlength=count)
    covered = np.bincount(areas[inside], minlength=count)
    filled = line | ((2 * covered > total)[areas] & ~line)
    if (filled & inside).sum() < _AGREEMENT * (filled | inside).sum():
        return inside | line
    return filled


def _read_sizes(source: Path) -> dict[str, tuple[float, float]]:
    """Return the pixel size and head circumference of each frame in the CSV; NaN if a cell is empty."""
    sizes: dict[str, tuple[float, float]] = {}
    for place, cells in read_table(source / CSV_NAME, (_FILE, _PIXEL_SIZE, _CIRCUMFERENCE)):
        match = _NAME.fullmatch(cells[_FILE])
        if match is None or match["outline"]:
            raise InputError(f"{place}: {_FILE} must be like 010_2HC.png; got {cells[_FILE]!r}.")
        if _frame_id(match) in sizes:
            raise InputError(f"{place} lists the image {_frame_id(match)} again. A frame must have one row.")
        sizes[_frame_id(match)] = length_mm(cells, _PIXEL_SIZE, place), length_mm(cells, _CIRCUMFERENCE, place)
    return sizes


def _list(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and outlines by frame."""
    images: dict[str, Path] = {}
    outlines: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            files = outlines if match["outline"] else images
            if (other := files.setdefault(_frame_id(match), path)) != path:
                raise InputError(f"{path} and {other.name} have the name of the same frame. Keep one of them.")
    return images, outlines


def _frame_id(name: re.Match) -> str:
    """Return the frame's id: 24_HC and 024_HC are the same."""
    return f"{int(name['study']):03d}_{name['number']}HC"


def _record(name: str, image: Path, outline: Path, pixel_mm: float, circumference_mm: float) -> dict[str, Any]:
    picture = read_png(image)
    line = read_grey(outline)
    require_size(line, png_size(picture), outline)
    mask: UInt8[np.ndarray, "h w"] = fill_outline(line, str(outline)).astype(np.uint8) * MASKS.index("head")
    return record_of(
        name,
        image=picture,
        patient_id=study_of(name),
        fine="HCP",
        coarse="head",
        pixel_mm=pixel_mm,
        mask=mask,
        measures={HEAD_CIRCUMFERENCE: circumference_mm},
    )
