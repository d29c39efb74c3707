"""CAMUS: apical views of adult hearts at end diastole and end systole, in the publisher's layout, as a TFDS dataset.

database_nifti/patientNNNN/
  patientNNNN_2CH_ED.nii.gz       the two-chamber view at end diastole; likewise 2CH_ES, 4CH_ED and 4CH_ES
  patientNNNN_2CH_ED_gt.nii.gz    its mask: 0 background, 1 left ventricle, 2 myocardium, 3 left atrium
  *_half_sequence*, Info_*.cfg    are not read
database_split/subgroup_{training,validation,testing}.txt    the publisher's split: one patient per line

Without database_split the patients are split here. Reading NIfTI needs nibabel, of the extra "nifti".
"""

import functools
import importlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from awcl_jax.data.anatomy import APICAL_VIEWS
from awcl_jax.data.png import check_mask, encode_png, require_content
from awcl_jax.data.record import PIXEL_HEIGHT, frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, draw_split, record_of, require_folder
from awcl_jax.runtime.errors import InputError, first_line

MASKS = ("background", "left ventricle", "myocardium", "left atrium")
VIEWS, MOMENTS = ("2CH", "4CH"), ("ED", "ES")
SUBGROUPS = {"training": "train", "validation": "val", "testing": "test"}

_LAYOUT = "database_nifti/ and database_split/"
_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}

_CITATION = """\
@article{leclerc2019,
  title = {Deep learning for segmentation using an open large-scale dataset in {2D} echocardiography},
  author = {Leclerc, Sarah and Smistad, Erik and Pedrosa, Jo{\\~a}o and {\\O}stvik, Andreas and others},
  journal = {IEEE Transactions on Medical Imaging},
  volume = {38},
  number = {9},
  pages = {2198--2210},
  year = {2019},
  doi = {10.1109/TMI.2019.2900516},
}"""


class Camus(FolderBuilder):
    """TFDS builder of CAMUS; see `awcl_jax.data.record` for the record, `FolderBuilder` to make.

    `pixel_mm` is the width of a pixel and `pixel_height_mm` its height: they may differ.
    """

    HOMEPAGE = "https://www.creatis.insa-lyon.fr/Challenge/camus"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The publisher's frames and split."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Two- and four-chamber views of adult hearts at end diastole and end systole, with masks of "
            "the left ventricle, the myocardium and the left atrium. scan_id is the patient.",
            features=frame_features(APICAL_VIEWS, mask_names=MASKS, measures=(PIXEL_HEIGHT,)),
            license="CC BY-NC-SA 4.0",
            citation=_CITATION,
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        folder = require_folder(source / "database_nifti", _LAYOUT)
        here = [path.name for path in sorted(folder.glob("patient*")) if path.is_dir()]
        splits = _read_splits(source)
        if splits and (strangers := [patient for patient in here if patient not in splits]):
            raise InputError(
                f"{source}/database_split has no subgroup for {len(strangers)} patient(s) in {folder}, the first "
                f"{strangers[0]}. Add them, or remove the folder database_split to split patients here."
            )
        found: list[Found] = []
        missing: list[str] = []
        for patient in sorted({*here, *splits}):
            for name, view in ((f"{patient}_{view}_{moment}", view) for view in VIEWS for moment in MOMENTS):
                image, mask = (folder / patient / f"{name}{end}.nii.gz" for end in ("", "_gt"))
                if image.is_file() and mask.is_file():
                    read = functools.partial(_record, name, patient, view, image, mask)
                    found.append(Found(name, patient, splits.get(patient) or draw_split(patient), read))
                else:
                    missing.append(name)
        accept_missing(
            [f"{name}.nii.gz" for name in missing],
            found=found,
            skip=self.skip_missing,
            what=f"{folder} lacks the image or the mask (..._gt.nii.gz) of {len(missing):,} frame(s)",
        )
        return found, missing


def read_nifti(path: Path) -> tuple[UInt8[np.ndarray, "h w"], tuple[float, float]]:
    """Read an image of grey values or classes, and its pixels' height and width in millimetres (NaN if unknown).

    NIfTI stores columns first: the array [w, h] is transposed.

    Raises:
      InputError: nibabel is not installed; the file is broken, not two-dimensional, or has values other than
        0, 1, ..., 255.
    """
    try:
        nibabel = importlib.import_module("nibabel")
    except ImportError:
        raise InputError("Reading CAMUS needs nibabel: pip install 'awcl_jax[nifti]'.") from None
    try:
        file = nibabel.load(path)
        values = np.asarray(file.dataobj)
    except (OSError, EOFError, ValueError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} is broken: it cannot be read as NIfTI ({first_line(error)}).") from error
    image = values.reshape([n for n in values.shape if n != 1]).T
    if image.ndim != 2:
        raise InputError(f"{path} must have two dimensions; got the shape {values.shape}.")
    if image.dtype.fields is not None:
        raise InputError(f"{path} must have grey values; got colours ({', '.join(image.dtype.fields)}).")
    grey = image.astype(np.uint8)
    if not np.array_equal(grey, image):
        raise InputError(f"{path} must have values 0, 1, ..., 255; got {image.min()} to {image.max()}.")
    unit = _MILLIMETRES.get(file.header.get_xyzt_units()[0], math.nan)
    width, height = (float(edge) * unit if edge > 0 else math.nan for edge in file.header.get_zooms()[:2])
    return np.ascontiguousarray(grey), (height, width)


def _read_splits(source: Path) -> dict[str, str]:
    """Return the split of each patient that the publisher lists; empty without database_split."""
    folder = source / "database_split"
    splits: dict[str, str] = {}
    if not folder.is_dir():
        return splits
    for subgroup, split in SUBGROUPS.items():
        path = folder / f"subgroup_{subgroup}.txt"
        if not path.is_file():
            raise InputError(f"{folder} has no {path.name}. The publisher's split has three files.")
        for patient in path.read_text("utf-8").split():
            if splits.setdefault(patient, split) != split:
                raise InputError(
                    f"{folder} lists {patient} in {splits[patient]} and {split}. A patient must have one split."
                )
    return splits


def _record(name: str, patient: str, view: str, image: Path, mask: Path) -> dict[str, Any]:
    picture, (height, width) = read_nifti(image)
    require_content(picture, str(image))
    classes, _ = read_nifti(mask)
    check_mask(classes, MASKS, size=picture.shape, path=mask)
    return record_of(
        name,
        image=encode_png(picture),
        patient_id=patient,
        machine="GE Vivid E95",  # all of them, according to the publication
        fine=view,
        coarse="heart",
        pixel_mm=width,
        mask=classes,
        measures={PIXEL_HEIGHT: height},
    )
