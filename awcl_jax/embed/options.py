"""How the files of a source are read; without slow imports."""

import dataclasses
from pathlib import Path

from awcl_jax.ingest.own.items import Reading


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """How files are read; each is as of `awcl_jax.ingest`.

    Attributes:
      region: part of a picture to keep, and to cut it to; by default as the encoder's training frames, if that is
        known, else `tag` of DICOM, and `whole`.
      every: keep every n-th frame of a clip.
      near_duplicate: drop frames of a clip that differ less from the last one kept.
      window: values for black and white, for more than 8 bits.
      max_pixels: larger pictures are refused.
      key_file: key to hash ids with; with a key, no name of a file or id is written. DICOM needs one.
    """

    region: str | tuple[int, int, int, int] | None = None
    every: int = Reading.every
    near_duplicate: float = Reading.near_duplicate
    window: tuple[float, float] | None = None
    max_pixels: int = Reading.max_pixels
    key_file: Path | None = None

    @property
    def all_of_plain_pictures(self) -> bool:
        """Whether pictures are read as they are, and named by their paths."""
        unchanged = self.region in (None, "whole") and self.window is None and self.key_file is None
        return unchanged and self.max_pixels == Reading.max_pixels

    def reading(self, kind: str) -> Reading:
        """Return how files of a kind are read."""
        return Reading(
            every=self.every,
            near_duplicate=self.near_duplicate,
            region=self.region or ("tag" if kind == "dicom" else "whole"),
            crop=True,
            window=self.window,
            max_pixels=self.max_pixels,
        )
