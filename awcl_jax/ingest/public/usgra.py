"""USGRA_SEG: nerves and vessels for ultrasound-guided regional anaesthesia, as a TFDS dataset.

train/images/NNNN.png    frames           train/masks/NNNN.png    0 background, 1 nerve, 2 vessel
test/images/, test/masks/                 the publisher's split

Neither patients nor machines are named: each image counts as a separate patient, so frames of one patient may be in
both of the publisher's splits.
"""

import functools
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import USGRA_SEG
from awcl_jax.data.images import find_named
from awcl_jax.data.png import png_size, read_mask, read_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, record_of, require_folder

SPLITS = ("train", "test")
MASKS = ("background", "nerve", "vessel")


class Usgra(FolderBuilder):
    """TFDS builder of USGRA_SEG; see `awcl_jax.data.record` for the record, `FolderBuilder` to make."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The publisher's frames and split."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Frames for regional anaesthesia with masks of nerves and vessels, in the publisher's split. "
            "Patients are not named: each image counts as one, so that the splits may share patients unseen.",
            features=frame_features(USGRA_SEG, mask_names=MASKS),
            license="CC BY 4.0",
            citation="@misc{usgra_seg, title={{USGRA_SEG}}, note={its files name no article}}",
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        found: list[Found] = []
        missing: list[str] = []
        for split in SPLITS:
            layout = "train/ and test/, each with images/ and masks/"
            images, masks = (require_folder(source / split / kind, layout) for kind in ("images", "masks"))
            for image in sorted(path for path in images.iterdir() if path.suffix.lower() == ".png"):
                name, mask = f"{split}/{image.stem}", find_named(masks, image.name)
                if mask.is_file():
                    found.append(Found(name, name, split, functools.partial(_record, name, image, mask)))
                else:
                    missing.append(name)
        accept_missing(
            [f"{name}.png" for name in missing],
            found=found,
            skip=self.skip_missing,
            what=f"{source} has {len(missing):,} image(s) (of {len(found) + len(missing):,}) without a mask",
        )
        return found, missing


def _record(name: str, image: Path, mask: Path) -> dict[str, Any]:
    picture = read_png(image)
    return record_of(
        name,
        image=picture,
        patient_id=name,
        fine="nerve block",
        coarse="nerve block",
        mask=read_mask(mask, MASKS, size=png_size(picture)),
    )
