"""Brains of FETAL_PLANES_DB with masks (Alzubaidi et al. 2023), as a TFDS dataset.

--source    FETAL_PLANES_DB in its publisher's layout
--masks     masks named after the frames: 0 background, 1 brain, 2 cavum septi pellucidi, 3 lateral ventricle

Only frames with a mask are used; patients and split are those of FETAL_PLANES_DB. The cavum and the ventricle are
coarse boxes.
"""

import functools
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import FETAL_PLANES_DB
from awcl_jax.data.images import find_named
from awcl_jax.data.png import encode_png, png_size, read_mask
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public import fetal_planes_db
from awcl_jax.ingest.public.fetal_planes_db import FetalPlanesDb, FrameRow
from awcl_jax.ingest.public.folder import Found, accept_missing, inventory
from awcl_jax.runtime.errors import InputError

MASKS = ("background", "brain", "cavum septi pellucidi", "lateral ventricle")

_CITATION = """\
@misc{alzubaidi2023,
  title = {Large-scale annotation dataset for fetal head biometry in ultrasound images},
  author = {Alzubaidi, Mahmood and others},
  year = {2023},
  doi = {10.5281/zenodo.8265464},
}"""


class FetalHeadBiometry(FetalPlanesDb):
    """TFDS builder of the masked brains of FETAL_PLANES_DB.

    Args:
      masks: folder of the masks.
      **kwargs: of `FetalPlanesDb`.

    Raises:
      InputError: from `download_and_prepare`, as `FetalPlanesDb`, or about a mask.
    """

    HOMEPAGE = "https://zenodo.org/records/8265464"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Frames of FETAL_PLANES_DB that have masks."}  # noqa: RUF012

    def __init__(self, *, masks: str | Path | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.masks = None if masks is None else Path(masks)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Brain frames of FETAL_PLANES_DB with masks of the brain, the cavum septi pellucidi and the "
            "lateral ventricle; patients and split are those of FETAL_PLANES_DB.",
            features=frame_features(FETAL_PLANES_DB, mask_names=MASKS),
            license="CC BY 4.0",
            citation=f"{_CITATION}\n{fetal_planes_db.CITATION}",
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        folder = self._mask_folder()
        rows = {row.frame_id: row for row in fetal_planes_db.read_rows(source, self.csv)}
        masks = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"}
        if not masks:
            raise InputError(f"{folder} has no masks (*.png). Set --masks to the folder of the masks.")
        if strangers := [name for name in masks if name not in rows]:
            raise InputError(
                f"{folder} has {len(strangers):,} mask(s) of frames that {source / self.csv} does not list, the first "
                f"{strangers[0]}.png. A mask must have the name of its frame."
            )
        images = {name: find_named(source / "Images", f"{name}.png") for name in masks}
        whole = [name for name in rows if name in masks and images[name].is_file()]
        missing = sorted(set(masks) - set(whole))
        accept_missing(
            [f"{name}.png" for name in missing],
            found=whole,
            skip=self.skip_missing,
            what=f"{folder} has {len(missing):,} mask(s) (of {len(masks):,}) of images that are not in {source}/Images",
        )
        return [
            Found(
                name,
                rows[name].patient_id,
                rows[name].split,
                functools.partial(self._masked_record, rows[name], images[name], masks[name]),
            )
            for name in whole
        ], missing

    def _masked_record(self, row: FrameRow, image: Path, mask: Path) -> dict[str, Any]:
        record = self._record(row, image)
        return {**record, "mask": encode_png(read_mask(mask, MASKS, size=png_size(record["image"])))}

    def settings(self, source: Path) -> dict[str, Any]:
        return {**super().settings(source), **{f"mask_{k}": v for k, v in inventory(self._mask_folder()).items()}}

    def _mask_folder(self) -> Path:
        if self.masks is None:
            raise InputError(
                "--masks is missing. Set it to the folder of the masks, which have the names of their frames."
            )
        if not self.masks.is_dir():
            raise InputError(f"The folder {self.masks} does not exist. Set --masks to the folder of the masks.")
        return self.masks
