"""BUSI: breasts with and without lesions, in the publisher's layout, as a TFDS dataset.

benign/benign (1).png             a frame
benign/benign (1)_mask.png        its lesion; further ones in benign (1)_mask_1.png and so on are merged with it
malignant/, normal/               likewise; the masks of normal frames are empty

Patients are not named: each image counts as a separate patient. The publication counts 780 images of 600 women, and
Pawlowska et al. (2023, Data in Brief) found copies among them: frames of one woman may be in several splits.
The publisher gives no split; images are split here.
"""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import BUSI
from awcl_jax.data.png import png_size, read_lesion, read_png
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.public.folder import FolderBuilder, Found, accept_missing, draw_split, record_of, require_folder

MASKS = ("background", "lesion")

_NAME = re.compile(r"(?P<frame>[a-z]+ \(\d+\))(?P<mask>_mask(_\d+)?)?(?i:\.png)", re.ASCII)

_CITATION = """\
@article{aldhabyani2020,
  title = {Dataset of breast ultrasound images},
  author = {Al-Dhabyani, Walid and Gomaa, Mohammed and Khaled, Hussien and Fahmy, Aly},
  journal = {Data in Brief},
  volume = {28},
  pages = {104863},
  year = {2020},
  doi = {10.1016/j.dib.2019.104863},
}"""


class Busi(FolderBuilder):
    """TFDS builder of BUSI; see `awcl_jax.data.record` for the record, `FolderBuilder` to make.

    The fine anatomy is the finding: benign, malignant, normal.
    """

    HOMEPAGE = "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "All frames, split 70/10/20 by image."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.describe(
            description="Breasts with masks of lesions. Patients are not named and each image counts as one, so that "
            "frames of one woman may be in several splits.",
            features=frame_features(BUSI, mask_names=MASKS),
            license="not stated with the files; the article is CC BY 4.0",
            citation=_CITATION,
        )

    def find(self, source: Path) -> tuple[list[Found], list[str]]:
        found: list[Found] = []
        missing: list[str] = []
        for finding in BUSI.fine:
            images: dict[str, Path] = {}
            masks: dict[str, list[Path]] = {}
            for path in sorted(require_folder(source / finding, "benign/, malignant/ and normal/").iterdir()):
                if (name := _NAME.fullmatch(path.name)) is None:
                    continue
                if name["mask"]:
                    masks.setdefault(name["frame"], []).append(path)
                else:
                    images[name["frame"]] = path
            for frame in sorted({*images, *masks}, key=lambda frame: int(re.sub(r"\D", "", frame))):
                if frame in images and frame in masks:
                    read = functools.partial(_record, frame, finding, images[frame], masks[frame])
                    found.append(Found(frame, frame, draw_split(frame), read))
                else:
                    missing.append(frame)
        accept_missing(
            [f"{frame}.png" for frame in missing],
            found=found,
            skip=self.skip_missing,
            what=f"{source} lacks the image or the mask (..._mask.png) of {len(missing):,} frame(s)",
        )
        return found, missing


def _record(frame: str, finding: str, image: Path, masks: list[Path]) -> dict[str, Any]:
    picture = read_png(image)
    lesion = np.zeros(png_size(picture), bool)
    for path in masks:
        lesion |= read_lesion(path, size=lesion.shape) != 0
    return record_of(
        frame,
        image=picture,
        patient_id=frame,
        fine=finding,
        coarse="breast",
        mask=lesion.astype(np.uint8) * MASKS.index("lesion"),
    )
