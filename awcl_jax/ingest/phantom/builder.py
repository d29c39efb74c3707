"""The phantom as a TFDS dataset: made on the spot, nothing to download."""

import dataclasses
import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.record import frame_features
from awcl_jax.ingest.phantom import examination
from awcl_jax.ingest.phantom.domains import DOMAINS
from awcl_jax.ingest.phantom.examination import address
from awcl_jax.ingest.phantom.scan import Scan


@dataclasses.dataclass(kw_only=True, eq=False)
class PhantomConfig(tfds.core.BuilderConfig):
    """What a set is of, and how large it is.

    Attributes:
      domain: name in DOMAINS.
      patients: number of patients of each split; no patient is in two.
      scans_per_patient: the least and the greatest number of scans of a patient.
      frames_per_scan: number of frames of a scan.
      image_size: edge of the picture in pixels.
      seed: another seed, another set.
    """

    domain: str = "fetus"
    patients: tuple[tuple[str, int], ...] = (("train", 48), ("val", 12), ("test", 24))
    scans_per_patient: tuple[int, int] = (1, 2)
    frames_per_scan: int = 18
    image_size: int = 96
    seed: int = 0

    def scans(self, split: str) -> Iterator[Scan]:
        """Yield the scans of a split, patient by patient."""
        names, counts = zip(*self.patients, strict=True)
        ends = dict(zip(names, itertools.accumulate(counts), strict=True))
        for patient in range(ends[split] - dict(self.patients)[split], ends[split]):
            low, high = self.scans_per_patient
            count = address(self.seed, patient, purpose=examination.SCANS).integers(low, high + 1)
            for number in range(int(count)):
                yield Scan(self.seed, patient, number, self.frames_per_scan, self.image_size, DOMAINS[self.domain])


class Phantom(tfds.core.GeneratorBasedBuilder):
    """Synthetic ultrasound with exact masks: fourteen planes of the fetus with frames between them, or adult hearts."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {  # noqa: RUF012  TFDS reads a plain class attribute
        "1.0.0": "First phantom.",
        "2.0.0": "Uneven tissue and boundaries, narrower mirror echoes, finer grain above the focus, darker pictures.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012
        PhantomConfig(
            name="default", description="84 patients, 130 scans, 2,340 frames of 96 px, made in some seconds."
        ),
        PhantomConfig(
            name="tiny",
            description="22 patients, 22 scans, 352 frames of 48 px, for tests.",
            patients=(("train", 12), ("val", 4), ("test", 6)),
            scans_per_patient=(1, 1),
            frames_per_scan=16,
            image_size=48,
        ),
        PhantomConfig(
            name="heart",
            description="36 patients, 36 scans, 324 frames of 96 px: adult hearts in the four-chamber view.",
            domain="heart",
            patients=(("train", 20), ("val", 6), ("test", 10)),
            scans_per_patient=(1, 1),
            frames_per_scan=9,
        ),
        PhantomConfig(
            name="heart_tiny",
            description="14 patients, 14 scans, 56 frames of 48 px, for tests.",
            domain="heart",
            patients=(("train", 6), ("val", 3), ("test", 5)),
            scans_per_patient=(1, 1),
            frames_per_scan=4,
            image_size=48,
        ),
    ]

    @property
    def frames(self) -> int:
        """The number of frames of all splits."""
        config = self.builder_config
        return config.frames_per_scan * sum(1 for split, _ in config.patients for _ in config.scans(split))

    def _info(self) -> tfds.core.DatasetInfo:
        domain = DOMAINS[self.builder_config.domain]
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Simulated ultrasound scans. Outlines of anatomy, drawn by growth charts, are filled with scatterers "
                "and seen through the point spread, attenuation, shadows and compression of an ultrasound machine. No "
                "real patient is in it, and nothing clinical follows from it."
            ),
            features=frame_features(domain.taxonomy, mask_names=domain.masks),
            citation="@misc{awcl_jax_phantom, title={The awcl_jax ultrasound phantom}, note={generated data}}",
            license="Apache-2.0",
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager
        return {split: self._generate_examples(split) for split, _ in self.builder_config.patients}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        scans: Iterator[Scan] = self.builder_config.scans(split)
        yield from enumerate(record for scan in scans for record in records(scan))


def records(scan: Scan) -> Iterator[dict[str, Any]]:
    """Yield the records of a scan, as `frame_features` describes them."""
    patient_id = f"P{scan.patient:04d}"
    scan_id = f"{patient_id}-S{scan.number}"
    machine = scan.settings.machine.name
    taxonomy = scan.domain.taxonomy
    fine, coarse = taxonomy.fine, taxonomy.coarse
    for frame in scan.frames():
        yield {
            "image": _png(frame.image),
            "frame_id": f"{scan_id}-F{frame.number:03d}",
            "scan_id": scan_id,
            "patient_id": patient_id,
            "machine": machine,
            "anatomy_fine": fine.index(frame.plane) if frame.plane else UNLABELLED,
            "anatomy_coarse": coarse.index(taxonomy.coarse_of(frame.plane)) if frame.plane else UNLABELLED,
            "pixel_mm": np.float32(frame.pixel_mm),
            "mask": _png(frame.mask),
        }


def _png(image: UInt8[np.ndarray, "h w"]) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png", compress_level=1)
    file.seek(0)
    return file
