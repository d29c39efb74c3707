"""FETAL_PLANES_DB: maternal-fetal screening frames in the publisher's layout, as a TFDS dataset.

Images/*.png                 the frames
FETAL_PLANES_DB_data.csv     ';'-separated, a row for each frame; its image is named without the ending .png
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import FETAL_PLANES_DB, UNLABELLED
from awcl_jax.data.images import find_named
from awcl_jax.data.png import read_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public import download
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, inventory, record_of
from awcl_jax.ingest.public.tables import read_table, require_known
from awcl_jax.runtime.errors import InputError

CSV_NAME = "FETAL_PLANES_DB_data.csv"
COLUMNS = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train")
SPLITS = {"1": "train", "0": "test"}

_RECORD, _ARCHIVE = "3904280", "FETAL_PLANES_ZENODO.zip"
_BRAIN, _OTHER = "Fetal brain", "Other"
_BRAIN_PLANES = tuple(
    alias for alias, name in FETAL_PLANES_DB.aliases.items() if name in FETAL_PLANES_DB.groups["head"]
)
_PLANES = (*(alias for alias in FETAL_PLANES_DB.aliases if alias not in _BRAIN_PLANES), _BRAIN, _OTHER)

CITATION = """\
@article{burgosartizzu2020,
  title = {Evaluation of deep convolutional neural networks for automatic classification of common maternal fetal
           ultrasound planes},
  author = {Burgos-Artizzu, Xavier P. and Coronado-Guti{\\'e}rrez, David and Valenzuela-Alcaraz, Brenda and
            Bonet-Carne, Elisenda and Eixarch, Elisenda and Crispi, Fatima and Gratac{\\'o}s, Eduard},
  journal = {Scientific Reports},
  volume = {10},
  pages = {10200},
  year = {2020},
  doi = {10.1038/s41598-020-67076-5},
}"""


@dataclasses.dataclass(frozen=True)
class FrameRow:
    """One row of the CSV: a frame, its patient, and its anatomy.

    Attributes:
      frame_id: the image's name without .png.
      patient_id: patient number in five digits. The publication names no examinations: a patient is a scan.
      machine: ultrasound machine.
      split: "train" or "test", the publisher's.
      fine: fine anatomy, or UNLABELLED.
      coarse: coarse anatomy, or UNLABELLED.
    """

    frame_id: str
    patient_id: str
    machine: str
    split: str
    fine: str | int
    coarse: str | int


class FetalPlanesDb(FolderBuilder):
    """TFDS builder of FETAL_PLANES_DB; see `awcl_jax.data.record` for the record.

    Args:
      source: folder in the publisher's layout; without it the publisher's archive is downloaded.
      csv: name of the CSV within `source`.
      **kwargs: of `FolderBuilder`.

    Raises:
      InputError: from `download_and_prepare`, if the CSV or an image is wrong.
    """

    HOMEPAGE = "https://zenodo.org/records/3904280"
    ADDED = ("images_sha256",)
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The publisher's frames and split; brain sub-planes are one coarse anatomy."}  # noqa: RUF012

    def __init__(self, *, source: str | Path | None = None, csv: str = CSV_NAME, **kwargs: Any) -> None:
        super().__init__(source=source, **kwargs)
        self.csv = csv

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Maternal-fetal screening ultrasound frames: abdomen, brain (with its sub-planes), femur, "
            "thorax and the mother's cervix. Examinations are not named: scan_id is the patient.",
            features=frame_features(FETAL_PLANES_DB),
            license="CC BY 4.0",
            citation=CITATION,
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        rows = read_rows(source, self.csv)
        found, missing = find_images(source, self.csv, rows, skip_missing=self.skip_missing)
        return [
            Found(row.frame_id, row.patient_id, row.split, functools.partial(self._record, row, path))
            for row, path in found.items()
        ], missing

    def _record(self, row: FrameRow, path: Path) -> dict[str, Any]:
        return record_of(
            row.frame_id,
            image=read_png(path),
            patient_id=row.patient_id,
            machine=row.machine,
            fine=row.fine,
            coarse=row.coarse,
        )

    def fetch(self, folder: Path) -> Path:
        archive = download.fetch(_RECORD, _ARCHIVE, folder)
        return find_layout(download.unpack(archive, archive.with_suffix("")), self.csv)

    def settings(self, source: Path) -> dict[str, Any]:
        path = _csv_path(source, self.csv)
        images = source / "Images"
        return {
            **self.flags(),
            "csv_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            **{key.replace("files", "images"): v for key, v in inventory(images, images.glob("*.png")).items()},
        }

    def flags(self) -> dict[str, Any]:
        return {"csv": self.csv, **super().flags()}


def read_rows(source: Path, name: str = CSV_NAME) -> tuple[FrameRow, ...]:
    """Read the publisher's CSV.

    Args:
      source: folder in the publisher's layout.
      name: name of the CSV in it.

    Returns:
      The rows in the CSV's order.

    Raises:
      InputError: the CSV does not exist, lacks columns or rows, has an unknown value, lists a frame twice, or has a
        patient in both splits.
    """
    path = _csv_path(source, name)
    rows = tuple(_parse(cells, place) for place, cells in read_table(path, COLUMNS, delimiter=";"))
    _check_rows(path, rows)
    return rows


def find_images(
    source: Path, name: str, rows: tuple[FrameRow, ...], *, skip_missing: bool
) -> tuple[dict[FrameRow, Path], list[str]]:
    """Find the image of each row.

    Args:
      source: folder in the publisher's layout.
      name: name of the CSV, for the message.
      rows: of the CSV.
      skip_missing: leave out rows without an image.

    Returns:
      (the image of each row that has one, the frame ids of the others)

    Raises:
      InputError: images are missing and `skip_missing` is not set, or all are.
    """
    folder = source / "Images"
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    named = {row: find_named(folder, f"{row.frame_id}.png") for row in rows}
    found = {row: path for row, path in named.items() if path.name in present}
    missing = [row.frame_id for row in rows if row not in found]
    accept_missing(
        [f"{frame_id}.png" for frame_id in missing],
        found=found,
        skip=skip_missing,
        what=f"{source / name} lists {len(missing):,} images (of {len(rows):,}) that are not in {folder}",
    )
    return found, missing


def find_layout(folder: Path, name: str) -> Path:
    """Return the folder at or below `folder` with the CSV `name`."""
    found = sorted(folder.rglob(name), key=lambda path: len(path.parts))
    return found[0].parent if found else folder


def _csv_path(source: Path, name: str) -> Path:
    if not source.is_dir():
        raise InputError(f"The folder {source} does not exist. Set --source to the folder with Images/ and {name}.")
    if not (source / name).is_file():
        others = ", ".join(sorted(path.name for path in source.glob("*.csv"))) or "none"
        raise InputError(f"{source} has no {name}. CSV files there: {others}. Choose one with --csv=NAME.")
    return source / name


def _parse(value: Mapping[str, str], place: str) -> FrameRow:
    frame_id = re.sub(r"\.png$", "", value["Image_name"], flags=re.IGNORECASE)
    if not frame_id or Path(frame_id).name != frame_id:
        raise InputError(f"{place}: Image_name must be the name of a file in Images/; got {value['Image_name']!r}.")
    if not (value["Patient_num"].isascii() and value["Patient_num"].isdigit()):
        raise InputError(f"{place}: Patient_num must be a whole number; got {value['Patient_num']!r}.")
    if value["Train"] not in SPLITS:
        raise InputError(f"{place}: Train must be 1 (train) or 0 (test); got {value['Train']!r}.")
    fine, coarse = _anatomy(value["Plane"], value["Brain_plane"], place)
    patient_id = f"{int(value['Patient_num']):05d}"
    return FrameRow(frame_id, patient_id, value["US_Machine"], SPLITS[value["Train"]], fine, coarse)


def _anatomy(plane: str, brain_plane: str, place: str) -> tuple[str | int, str | int]:
    """Return the fine and coarse anatomy of a plane; the brain's fine anatomy is its sub-plane."""
    require_known("Plane", plane, _PLANES, place)
    if plane == _OTHER:
        return UNLABELLED, UNLABELLED
    if plane == _BRAIN:
        require_known("Brain_plane", brain_plane, (*_BRAIN_PLANES, _OTHER), place)
        if brain_plane == _OTHER:
            return UNLABELLED, "head"
        plane = brain_plane
    fine = FETAL_PLANES_DB.resolve(plane)
    return fine, FETAL_PLANES_DB.coarse_of(fine)


def _check_rows(path: Path, rows: tuple[FrameRow, ...]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.frame_id in seen:
            raise InputError(f"{path} lists the image {row.frame_id} twice. A frame must have one row.")
        seen.add(row.frame_id)
    patients = {split: {row.patient_id for row in rows if row.split == split} for split in SPLITS.values()}
    if shared := sorted(patients["train"] & patients["test"]):
        raise InputError(
            f"{path} has patient {shared[0]} in both splits, Train 1 and 0 ({len(shared)} such patient(s)): test "
            "results would include patients seen in training. Set one value of Train for every patient."
        )
