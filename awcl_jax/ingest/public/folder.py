"""Base of the builders that prepare a dataset from a folder in its publisher's layout."""

import abc
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from awcl_jax.data.png import encode_png
from awcl_jax.runtime.errors import InputError

_TABLES = (".csv", ".txt", ".cfg")
_SHARES = {"test": 0.2, "val": 0.1}  # of the patients, if the publisher has no split; the rest is for training


@dataclasses.dataclass(frozen=True)
class Found:
    """A frame whose files exist.

    Attributes:
      frame_id: its name, unique in the dataset.
      patient_id: its patient.
      split: its split.
      read: returns its record (see `awcl_jax.data.record`); raises InputError if a file is broken.
    """

    frame_id: str
    patient_id: str
    split: str
    read: Callable[[], dict[str, Any]]


class FolderBuilder(tfds.core.GeneratorBasedBuilder):
    """TFDS builder that reads a folder in a publisher's layout.

    Args:
      source: the folder.
      skip_missing: skip frames that lack a file, instead of refusing the folder.
      skip_broken: skip frames with a file that is broken, empty or does not fit, instead of refusing it.
      file_format: of the prepared dataset; ArrayRecord can be read without TensorFlow.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`, foremost `data_dir`.

    Raises:
      InputError: from `download_and_prepare`, if the folder is wrong.
    """

    HOMEPAGE = ""
    """The publisher's page."""

    ADDED: ClassVar[Sequence[str]] = ()
    """Settings that datasets of earlier versions lack, which are then not compared."""

    def __init__(
        self,
        *,
        source: str | Path | None = None,
        skip_missing: bool = False,
        skip_broken: bool = False,
        file_format: str | None = "array_record",
        **kwargs: Any,
    ) -> None:
        super().__init__(file_format=file_format, **kwargs)
        self.source = None if source is None else Path(source)
        self.skip_missing = skip_missing
        self.skip_broken = skip_broken

    @abc.abstractmethod
    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        """Return the frames in the order of the dataset, and the ids of those skipped because they lack a file.

        Raises:
          InputError: the folder is not in the publisher's layout, or frames lack a file and `skip_missing` is not set.
        """

    def settings(self, source: Path) -> dict[str, Any]:
        """Return what the prepared dataset depends on, to compare with an existing one."""
        return {**self.flags(), **inventory(source)}

    def flags(self) -> dict[str, Any]:
        """Return the part of `settings` that needs no source."""
        return {"skip_missing": self.skip_missing, "skip_broken": self.skip_broken}

    def fetch(self, folder: Path) -> Path:
        """Download the source and return its folder.

        Raises:
          InputError: this package does not download this dataset.
        """
        del folder
        at = f" (available at {self.HOMEPAGE})" if self.HOMEPAGE else ""
        raise InputError(f"--source is missing. Set it to the folder with the unpacked {self.name}{at}.")

    def describe(self, *, features: tfds.features.FeaturesDict, **text: str) -> tfds.core.DatasetInfo:
        """Return the dataset's card; `text` is its description, license and citation."""
        return tfds.core.DatasetInfo(
            builder=self,
            features=features,
            homepage=self.HOMEPAGE,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # frames keep the order they are found in
            **text,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        source = self.source or self.fetch(Path(dl_manager.download_dir))
        if not source.is_dir():
            raise InputError(
                f"The folder {source} does not exist. Set --source to the folder with the unpacked {self.name}."
            )
        found, missing = self.find(source)
        if not found:
            raise InputError(f"{source} has no frames of {self.name}. Is this the unpacked folder?")
        _check(found, source)
        # TFDS writes this to metadata.json beside the records.
        metadata = self.info.metadata
        metadata["settings"] = self.settings(source)
        metadata["skipped"] = {"missing": missing, "broken": []}
        metadata["unknown_size"] = []
        splits = [split for split in ("train", "val", "test") if any(frame.split == split for frame in found)]
        return {split: self._generate_examples(source, split, found) for split in splits}

    def _generate_examples(self, source: Path, split: str, found: list[Found]) -> Iterator[tuple[int, dict[str, Any]]]:
        written, metadata = 0, self.info.metadata
        for frame in found:
            if frame.split != split:
                continue
            try:
                record = frame.read()
            except InputError as error:
                if not self.skip_broken:
                    raise InputError(f"{error} Use --skip_broken to skip such frames.") from error
                metadata["skipped"]["broken"].append(frame.frame_id)
                continue
            if "mask" in record and math.isnan(record["pixel_mm"]):
                metadata["unknown_size"].append(frame.frame_id)
            yield written, record
            written += 1
        if not written:
            raise InputError(f"Every image of the {split} split in {source} is broken or empty.")


def record_of(
    frame_id: str,
    *,
    image: bytes,
    patient_id: str,
    fine: str | int,
    coarse: str | int,
    scan_id: str | None = None,
    machine: str = "",
    pixel_mm: float = math.nan,
    mask: UInt8[np.ndarray, "h w"] | None = None,
    measures: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the record of a frame; without `scan_id` the patient is one scan; `pixel_mm` NaN is an unknown size."""
    record = {
        "image": image,
        "frame_id": frame_id,
        "scan_id": patient_id if scan_id is None else scan_id,
        "patient_id": patient_id,
        "machine": machine,
        "anatomy_fine": fine,
        "anatomy_coarse": coarse,
        "pixel_mm": pixel_mm,
        **(measures or {}),
    }
    return record if mask is None else {**record, "mask": encode_png(mask)}


def accept_missing(missing: Sequence[str], *, found: Collection, skip: bool, what: str) -> None:
    """Refuse a folder that lacks files, unless they may be skipped and others exist.

    Args:
      missing: names of the missing files.
      found: what exists.
      skip: whether missing files may be skipped.
      what: beginning of the message, e.g. "data.csv lists 2 images (of 7) that are not in Images".

    Raises:
      InputError: the folder is refused.
    """
    if missing and not (skip and found):
        remedy = "Use --skip_missing to skip them." if found else "Is this the unpacked folder?"
        raise InputError(f"{what}, the first {missing[0]}. {remedy}")


def require_folder(folder: Path, layout: str) -> Path:
    """Return the folder, which must exist.

    Raises:
      InputError: it does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"The folder {folder} does not exist. Set --source to the folder with {layout}.")
    return folder


def draw_split(patient_id: str) -> str:
    """Draw the split of a patient, if the publisher has none: 70 % train, 10 % val, 20 % test.

    It depends only on the patient's name (the place of its SHA-256 digest among all), so that a part of a dataset is
    split in the same way as all of it.
    """
    digest = hashlib.sha256(f"awcl_jax split 0:{patient_id}".encode()).digest()
    at, end = int.from_bytes(digest[:8]) / 2**64, 0.0
    for split, share in _SHARES.items():
        end += share
        if at < end:
            return split
    return "train"


def inventory(folder: Path, files: Iterable[Path] | None = None) -> dict[str, Any]:
    """Return the number of files below a folder, by default all, and a digest of names and sizes and of the tables."""
    digest, count = hashlib.sha256(), 0
    for file in sorted(path for path in (folder.rglob("*") if files is None else files) if path.is_file()):
        count += 1
        digest.update(os.fsencode(f"{file.relative_to(folder)} {file.stat().st_size}\n"))
        if file.suffix in _TABLES:
            digest.update(file.read_bytes())
    return {"files": count, "files_sha256": digest.hexdigest()[:16]}


def _check(found: list[Found], source: Path) -> None:
    seen: set[str] = set()
    split_of: dict[str, str] = {}
    for frame in found:
        if frame.frame_id in seen:
            raise InputError(f"{source} has the frame {frame.frame_id} twice. The name of a frame must be unique.")
        seen.add(frame.frame_id)
        if (split := split_of.setdefault(frame.patient_id, frame.split)) != frame.split:
            raise InputError(
                f"{source} has patient {frame.patient_id} in {split} and in {frame.split}: test results would include "
                "patients seen in training. Set one split for every patient."
            )
