"""FETAL_PLANES_DB: maternal-fetal screening frames in the publisher's layout, as a TFDS dataset.

Images/*.png                 the frames
FETAL_PLANES_DB_data.csv     ';'-separated, a row for each frame; its image is named without the ending .png
"""

import csv
import dataclasses
import difflib
import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Shaped

from awcl_jax.anatomy import FETAL_PLANES_DB, UNLABELLED
from awcl_jax.data.datasets import download
from awcl_jax.data.datasets.frames import frame_features
from awcl_jax.errors import InputError

CSV_NAME = "FETAL_PLANES_DB_data.csv"
COLUMNS = ("Image_name", "Patient_num", "Plane", "Brain_plane", "Operator", "US_Machine", "Train")
SPLITS = {"1": "train", "0": "test"}

_RECORD, _ARCHIVE = "3904280", "FETAL_PLANES_ZENODO.zip"
_BRAIN, _OTHER = "Fetal brain", "Other"
_BRAIN_PLANES = tuple(
    alias for alias, name in FETAL_PLANES_DB.aliases.items() if name in FETAL_PLANES_DB.groups["head"]
)
_PLANES = (*(alias for alias in FETAL_PLANES_DB.aliases if alias not in _BRAIN_PLANES), _BRAIN, _OTHER)

_CITATION = """\
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
    """One row of the CSV: a frame, whose it is, and what it shows.

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


class FetalPlanesDb(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of FETAL_PLANES_DB; see `awcl_jax.data.datasets.frames` for the record.

    Args:
      source: folder in the publisher's layout; without it the publisher's archive is downloaded.
      csv: name of the CSV within `source`.
      skip_missing: leave out frames whose image is not there, instead of refusing the CSV.
      skip_broken: leave out frames whose image is broken or empty, instead of refusing it.
      file_format: of the prepared dataset; ArrayRecord, which is read without TensorFlow.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`, foremost `data_dir`.

    Raises:
      InputError: from `download_and_prepare`, about what is wrong with the CSV or an image.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The publisher's frames and split; brain sub-planes are one coarse anatomy."}  # noqa: RUF012

    def __init__(
        self,
        *,
        source: str | Path | None = None,
        csv: str = CSV_NAME,
        skip_missing: bool = False,
        skip_broken: bool = False,
        file_format: str | None = "array_record",
        **kwargs: Any,
    ) -> None:
        super().__init__(file_format=file_format, **kwargs)
        self.source = None if source is None else Path(source)
        self.csv = csv
        self.skip_missing = skip_missing
        self.skip_broken = skip_broken

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Maternal-fetal screening ultrasound frames: abdomen, brain (with its sub-planes), femur, "
            "thorax and the mother's cervix. Examinations are not named: scan_id is the patient.",
            features=frame_features(FETAL_PLANES_DB),
            homepage="https://zenodo.org/records/3904280",
            license="CC BY 4.0",
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # frames keep the order of the CSV
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        source = self.source or self._download(Path(dl_manager.download_dir))
        rows = read_rows(source, self.csv)
        found, missing = find_images(source, self.csv, rows, skip_missing=self.skip_missing)
        # Written to metadata.json beside the records, by TFDS.
        metadata = self.info.metadata
        metadata["settings"] = self.settings(source)
        metadata["skipped"] = {"missing": missing, "broken": []}
        splits = [split for split in SPLITS.values() if any(row.split == split for row in found)]
        return {split: self._generate_examples(source, split, found) for split in splits}

    def _generate_examples(
        self, source: Path, split: str, rows: Mapping[FrameRow, Path]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        written = 0
        for row, path in rows.items():
            if row.split != split:
                continue
            try:
                image = read_png(path)
            except InputError as error:
                if not self.skip_broken:
                    raise InputError(f"{error} --skip_broken leaves such frames out.") from error
                self.info.metadata["skipped"]["broken"].append(row.frame_id)
                continue
            yield written, _example(row, image)
            written += 1
        if not written:
            raise InputError(f"Every image of the {split} split in {source} is broken or empty.")

    def _download(self, folder: Path) -> Path:
        archive = download.fetch(_RECORD, _ARCHIVE, folder)
        return find_layout(download.unpack(archive, archive.with_suffix("")), self.csv)

    def settings(self, source: Path) -> dict[str, Any]:
        """What the prepared dataset depends on, to tell whether one that exists is the one asked for."""
        path = _csv_path(source, self.csv)
        return {
            **self.flags(),
            "csv_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            "images": sum(1 for _ in (source / "Images").glob("*.png")),
        }

    def flags(self) -> dict[str, Any]:
        """The part of `settings` that needs no source."""
        return {"csv": self.csv, "skip_missing": self.skip_missing, "skip_broken": self.skip_broken}


def read_rows(source: Path, name: str = CSV_NAME) -> tuple[FrameRow, ...]:
    """Read the publisher's CSV.

    Args:
      source: folder in the publisher's layout.
      name: name of the CSV in it.

    Returns:
      The rows in the CSV's order.

    Raises:
      InputError: there is no such CSV, it lacks columns or rows, a value is not known, a frame is named twice, or a
        patient is in both splits.
    """
    path = _csv_path(source, name)
    try:
        # Some tables have a byte-order mark, which utf-8-sig drops.
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=";", restval="", skipinitialspace=True)
            # The publisher's last column is named "Train ", with a blank.
            table.fieldnames = [column.strip() for column in table.fieldnames or ()]
            if absent := [column for column in COLUMNS if column not in table.fieldnames]:
                raise InputError(
                    f"{path} lacks the column(s) {', '.join(absent)}; it has {', '.join(table.fieldnames) or 'none'}. "
                    "Columns are separated by ';'."
                )
            rows = tuple(_parse(cells, f"{path}, line {table.line_num}") for cells in table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV text file ({error}).") from error
    if not rows:
        raise InputError(f"{path} names no frames: it has a header and no rows.")
    _check_rows(path, rows)
    return rows


def find_images(
    source: Path, name: str, rows: tuple[FrameRow, ...], *, skip_missing: bool
) -> tuple[dict[FrameRow, Path], list[str]]:
    """Find the image of each row.

    Args:
      source: folder in the publisher's layout.
      name: name of the CSV, for the message.
      rows: what the CSV says.
      skip_missing: leave out rows without an image.

    Returns:
      (the image of each row that has one, the frame ids of the others)

    Raises:
      InputError: images are missing and `skip_missing` is not set, or all are.
    """
    folder = source / "Images"
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = {row: folder / f"{row.frame_id}.png" for row in rows if f"{row.frame_id}.png" in present}
    missing = [row.frame_id for row in rows if row not in found]
    if missing and not (skip_missing and found):
        remedy = "--skip_missing leaves them out." if found else "Is this the folder that was unpacked?"
        raise InputError(
            f"{source / name} names {len(missing):,} images (of {len(rows):,}) that are not in {folder}, the first "
            f"{missing[0]}.png. {remedy}"
        )
    return found, missing


def find_layout(folder: Path, name: str) -> Path:
    """The folder at or below `folder` that holds the CSV `name`."""
    found = sorted(folder.rglob(name), key=lambda path: len(path.parts))
    return found[0].parent if found else folder


def read_png(path: Path) -> bytes:
    """Read an image and give it as an 8-bit grey PNG; one that is so already is passed through byte for byte.

    Colour is turned to grey: the publisher stores some grey frames with three equal channels.

    Raises:
      InputError: the image is cut short or otherwise broken, not of 8 bits, or empty (a single value).
    """
    data = path.read_bytes()
    if not data:
        raise InputError(f"{path} is broken: it has no bytes.")
    if data.startswith(_PNG) and (fault := _find_png_fault(data)):
        # cv2 would fill what is missing with black and say nothing.
        raise InputError(f"{path} is broken: {fault}.")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or not image.size:
        raise InputError(f"{path} is broken: it cannot be decoded as an image.")
    if image.dtype != np.uint8:
        raise InputError(f"{path} has {8 * image.dtype.itemsize} bits a pixel; frames have 8.")
    grey = _to_grey(image)
    if grey.min() == grey.max():
        raise InputError(f"{path} is empty: every pixel is {grey.flat[0]}.")
    # Bytes 24 and 25 are the PNG header's bit depth and colour type; type 0 is grey.
    if data.startswith(_PNG) and data[24:26] == b"\x08\x00":
        return data
    return cv2.imencode(".png", grey)[1].tobytes()


_PNG = b"\x89PNG\r\n\x1a\n"


def _find_png_fault(data: bytes) -> str | None:
    """What is wrong with a PNG, from the checksums of its chunks; None when it is whole."""
    start = len(_PNG)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4])
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return "it is cut short" if end + 4 > len(data) else "its checksum is wrong"
        if data[start + 4 : start + 8] == b"IEND":
            return None
        start = end + 4
    return "it is cut short"


def _to_grey(image: Shaped[np.ndarray, "h w"] | Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w"]:
    if image.ndim == 2:
        return image
    colour = image[..., :3]
    if (colour == colour[..., :1]).all():
        return np.ascontiguousarray(colour[..., 0])
    return cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_BGR2GRAY)


def _csv_path(source: Path, name: str) -> Path:
    if not source.is_dir():
        raise InputError(f"There is no folder {source}: --source is the folder that holds Images/ and {name}.")
    if not (source / name).is_file():
        others = ", ".join(sorted(path.name for path in source.glob("*.csv"))) or "none"
        raise InputError(f"{source} has no {name}. CSV files there: {others}; --csv=NAME chooses one.")
    return source / name


def _parse(cells: Mapping[str, str], place: str) -> FrameRow:
    value = {column: (cells[column] or "").strip() for column in COLUMNS}
    frame_id = value["Image_name"].removesuffix(".png")
    if not frame_id or Path(frame_id).name != frame_id:
        raise InputError(f"{place}: Image_name is the name of a file in Images/; got {value['Image_name']!r}.")
    if not (value["Patient_num"].isascii() and value["Patient_num"].isdigit()):
        raise InputError(f"{place}: Patient_num is a whole number; got {value['Patient_num']!r}.")
    if value["Train"] not in SPLITS:
        raise InputError(f"{place}: Train is 1 (train) or 0 (test); got {value['Train']!r}.")
    fine, coarse = _anatomy(value["Plane"], value["Brain_plane"], place)
    patient_id = f"{int(value['Patient_num']):05d}"
    return FrameRow(frame_id, patient_id, value["US_Machine"], SPLITS[value["Train"]], fine, coarse)


def _anatomy(plane: str, brain_plane: str, place: str) -> tuple[str | int, str | int]:
    """Fine and coarse anatomy of a plane; the brain's is named by its sub-plane."""
    _require_known("Plane", plane, _PLANES, place)
    if plane == _OTHER:
        return UNLABELLED, UNLABELLED
    if plane == _BRAIN:
        _require_known("Brain_plane", brain_plane, (*_BRAIN_PLANES, _OTHER), place)
        if brain_plane == _OTHER:
            return UNLABELLED, "head"
        plane = brain_plane
    fine = FETAL_PLANES_DB.resolve(plane)
    return fine, FETAL_PLANES_DB.coarse_of(fine)


def _require_known(column: str, value: str, known: tuple[str, ...], place: str) -> None:
    if value not in known:
        nearest = difflib.get_close_matches(value, known, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{place}: unknown {column} {value!r}, did you mean {nearest!r}? Known are {', '.join(known)}."
        )


def _check_rows(path: Path, rows: tuple[FrameRow, ...]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.frame_id in seen:
            raise InputError(f"{path} names the image {row.frame_id} twice; a frame has one row.")
        seen.add(row.frame_id)
    patients = {split: {row.patient_id for row in rows if row.split == split} for split in SPLITS.values()}
    if shared := sorted(patients["train"] & patients["test"]):
        raise InputError(
            f"{path} has patient {shared[0]} in both splits, Train 1 and 0 ({len(shared)} such patient(s)): results on "
            "the test split would be of patients seen in training. Give every patient one value of Train."
        )


def _example(row: FrameRow, image: bytes) -> dict[str, Any]:
    return {
        "image": image,
        "frame_id": row.frame_id,
        "scan_id": row.patient_id,
        "patient_id": row.patient_id,
        "machine": row.machine,
        "anatomy_fine": row.fine,
        "anatomy_coarse": row.coarse,
        "pixel_mm": math.nan,  # not published
    }
