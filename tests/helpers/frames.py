"""Small made-up pictures, records and folders of frames."""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import FETAL_PLANES_DB
from awcl_jax.data.record import frame_features

PLANES_ROWS = (
    "a1;1;Fetal abdomen;Not A Brain;Op. 1;Aloka;1",
    "a2;01;Fetal brain;Trans-thalamic;Op. 1;Aloka;1",
    "b1;2;Fetal brain;Other;Op. 2;Voluson E6;1",
    "b2;2;Other;Not A Brain;Op. 2;Voluson E6;1",
    "c1;3;Maternal cervix;Not A Brain;Op. 1;Aloka;0",
    "d1;4;Fetal femur;Not A Brain;Other;Voluson S10;0",
    "d2;4;Fetal femur;Not A Brain;Other;Voluson S10;0",
)


@dataclasses.dataclass(frozen=True)
class Planes:
    """A folder in the layout of FETAL_PLANES_DB."""

    folder: Path
    header: str = "Image_name;Patient_num;Plane;Brain_plane;Operator;US_Machine;Train "

    def write(self, *rows: str, name: str = "FETAL_PLANES_DB_data.csv", images: bool = True) -> Path:
        """Write a CSV of these rows and, with `images`, a picture for each."""
        (self.folder / "Images").mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text("\n".join([self.header, *rows]) + "\n")
        if images:
            for row in rows:
                self.draw(row.split(";")[0])
        return self.folder

    def draw(self, name: str) -> np.ndarray:
        """Write a picture unique to this name."""
        image = speckle(name)
        cv2.imwrite(str(self.folder / "Images" / f"{name}.png"), image)
        return image


def speckle(name: str) -> np.ndarray:
    """Return a grey picture [32, 40] unique to this name."""
    return np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (32, 40), np.uint8)


class FrameSet(tfds.core.GeneratorBasedBuilder):
    """Frames given as records, split by split."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: Mapping[str, Sequence[dict[str, Any]]], masks: bool = False, **kwargs: Any) -> None:
        self.given, self.masks = splits, masks
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = ("background", "brain") if self.masks else ()
        return tfds.core.DatasetInfo(
            builder=self, features=frame_features(FETAL_PLANES_DB, mask_names=names), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(records) for split, records in self.given.items()}

    def _generate_examples(self, records: Sequence[dict[str, Any]]) -> Iterator:
        yield from enumerate(records)


def frame_record(frame_id: str, patient_id: str = "p", **fields: Any) -> dict[str, Any]:
    """Return a record with a picture unique to this frame; images and masks are given as arrays."""
    record: dict[str, Any] = {
        "image": speckle(frame_id),
        "frame_id": frame_id,
        "scan_id": f"{patient_id}-s",
        "patient_id": patient_id,
        "machine": "Aloka",
        "anatomy_fine": "femur",
        "anatomy_coarse": "femur",
        "pixel_mm": 0.5,
    }
    record |= fields
    for picture in {"image", "mask"} & record.keys():
        if isinstance(record[picture], np.ndarray):
            record[picture] = cv2.imencode(".png", record[picture])[1].tobytes()
    return record


def decoded_records(builder: tfds.core.DatasetBuilder) -> dict[str, list[dict[str, Any]]]:
    """Prepare a dataset, open it anew without its builder, and decode all records, split by split."""
    builder.download_and_prepare()
    opened = tfds.builder_from_directory(builder.data_dir)
    return {split: list(opened.as_data_source(split)) for split in opened.info.splits}
