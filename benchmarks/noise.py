"""A dataset of smooth random frames, whose PNGs take about as long to decode as those of ultrasound."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from awcl_jax.data.anatomy import FETAL_PLANES_DB
from awcl_jax.data.record import frame_features


class NoiseFrames(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the frames, all in `train`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, frames: int, edge: int, **kwargs: Any) -> None:
        """Take the number of frames and their edge in pixels; others as of TFDS."""
        self.frames, self.edge = frames, edge
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=frame_features(FETAL_PLANES_DB), disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        rng = np.random.default_rng(0)
        for i in range(self.frames):
            noise = cv2.GaussianBlur(rng.normal(size=(self.edge, self.edge)).astype(np.float32), (0, 0), 2)
            picture = np.clip(128 + 250 * noise, 0, 255).astype(np.uint8)
            yield (
                i,
                {
                    "image": cv2.imencode(".png", picture)[1].tobytes(),
                    "frame_id": f"f{i}",
                    "scan_id": f"s{i}",
                    "patient_id": f"p{i}",
                    "machine": "none",
                    "anatomy_fine": "femur",
                    "anatomy_coarse": "femur",
                    "pixel_mm": 0.5,
                },
            )


def write_noise(folder: Path, *, frames: int, edge: int) -> Path:
    """Write a dataset of so many square frames; return its folder."""
    builder = NoiseFrames(frames=frames, edge=edge, data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)
