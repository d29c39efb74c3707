"""The records of a prepared dataset by their position, with clear errors for unreadable ones."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from awcl_jax.data.stored import open_dataset
from awcl_jax.runtime.errors import InputError, first_line

REMEDY = "prepare or copy the dataset again, or skip unreadable frames (config.data.skip_unreadable=True)"
"""The fix for records that cannot be read."""

_FEATURES = ("image", "frame_id", "scan_id", "patient_id", "machine", "anatomy_fine", "anatomy_coarse")


class Records:
    """A prepared dataset, opened on first use; safe to use from many threads.

    Args:
      path: folder of the dataset (TFDS's version folder).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._builder: tfds.core.DatasetBuilder | None = None
        self._sources: dict[str, Any] = {}

    @property
    def info(self) -> tfds.core.DatasetInfo:
        """The metadata of the dataset in TFDS.

        Raises:
          InputError: it cannot be opened, or does not have this package's record.
        """
        with self._lock:
            if self._builder is None:
                self._builder = _open(self.path)
            return self._builder.info

    @property
    def splits(self) -> tuple[str, ...]:
        """The dataset's splits, in its order."""
        return tuple(self.info.splits)

    @property
    def pictures(self) -> tuple[str, ...]:
        """The features that are pictures: `image` and, if there are masks, `mask`."""
        return tuple(name for name in ("image", "mask") if name in self.info.features)

    def count(self, split: str) -> int:
        """Return the number of records of a split, from the dataset's metadata."""
        return self.info.splits[split].num_examples

    def read(self, split: str, position: int, *, frame_id: str | None = None) -> dict[str, Any]:
        """Read a record, with its pictures as they are stored.

        Args:
          split: name of its split.
          position: in the split.
          frame_id: for the error message.

        Raises:
          InputError: it cannot be read.
        """
        source = self._source(split)
        try:
            return source[position]
        except Exception as error:  # array_record raises whatever its C++ side does
            place = self.place(split, position, frame_id)
            raise InputError(f"Cannot read {place} ({first_line(error)}): {REMEDY}.") from error

    def read_many(self, split: str, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Read several records at once, which is faster.

        Raises:
          InputError: as `read`, for the first that cannot be read.
        """
        source = self._source(split)
        try:
            return source.__getitems__(list(positions))
        except Exception:  # it does not name the record
            return [self.read(split, position) for position in positions]

    def place(self, split: str, position: int, frame_id: str | None = None) -> str:
        """Return where a record is, for messages."""
        record = f"record {position} of split {split!r}"
        return f"{record} of {self.path}" if frame_id is None else f"frame {frame_id!r} ({record}) of {self.path}"

    def _source(self, split: str) -> Any:
        # cv2 decodes faster than TFDS and lets other threads run meanwhile.
        skipped = {name: tfds.decode.SkipDecoding() for name in self.pictures}
        with self._lock:
            assert self._builder is not None
            if split not in self._sources:
                try:
                    self._sources[split] = self._builder.as_data_source(split, decoders=skipped)
                except OSError:
                    raise
                except Exception as error:  # an unknown name
                    raise InputError(
                        f"The split {split!r} of {self.path} cannot be opened ({first_line(error)}): {REMEDY}."
                    ) from error
            return self._sources[split]


def _open(path: Path) -> tfds.core.DatasetBuilder:
    builder = open_dataset(path)
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        stored = builder.info.file_format.value
        raise InputError(f"The dataset {path} is stored as {stored}; prepare it again with file_format='array_record'.")
    if absent := [name for name in _FEATURES if name not in builder.info.features]:
        raise InputError(
            f"The dataset {path} lacks {', '.join(absent)}. See awcl_jax.data.record for the required features."
        )
    return builder
