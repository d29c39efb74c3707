"""TFDS builder of your own scans: copies decoded records into the shards of a dataset.

TFDS's writer would keep all records in memory (with shuffling off, everything that it spills to disk is one bucket,
which it reads back at once), so records are copied here from the chunks unchanged.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from awcl_jax.ingest.own.chunks import RECORD_OPTIONS
from awcl_jax.ingest.own.collect import Part

_DESCRIPTION = "Ultrasound frames of our own, prepared by awcl_jax.ingest."
_SHARD_BYTES = 256 << 20
_BATCH = 16


class OwnScans(FileReaderBuilder):
    """TFDS builder of frames decoded into chunks; see `awcl_jax.data.record` for the record.

    Args:
      name: of the dataset.
      features: of a frame, see `awcl_jax.data.record`.
      parts: split -> its records.
      sizes: split -> approximate bytes of these, to divide them into files.
      metadata: stored with the dataset.
      data_dir: folder to write to.
      like: a dataset whose version and description it has, if it is a copy.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Frames as they were found."}  # noqa: RUF012  TFDS reads a plain class attribute

    def __init__(
        self,
        *,
        name: str,
        features: tfds.features.FeaturesDict,
        parts: Mapping[str, Sequence[Part]],
        sizes: Mapping[str, int],
        metadata: Mapping[str, Any],
        data_dir: Path,
        like: tfds.core.DatasetInfo | None = None,
    ) -> None:
        self.name = name
        self.features, self.like = features, like
        if like is not None:
            self.VERSION = like.version
        self.parts, self.sizes, self.metadata = parts, sizes, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.like.description if self.like else _DESCRIPTION,
            features=self.features,
            homepage=self.like.homepage if self.like else None,
            citation=self.like.citation if self.like else None,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        del dl_manager, download_config
        self.info.metadata.update(self.metadata)
        self.info.set_splits(tfds.core.splits.SplitDict([self._write(split) for split in self.parts]))

    def _write(self, split: str) -> tfds.core.SplitInfo:
        template = self._get_filename_template(split)
        count = sum(len(part.records) for part in self.parts[split])
        shards = min(max(1, -(-self.sizes[split] // _SHARD_BYTES)), count)
        lengths = [count * (shard + 1) // shards - count * shard // shards for shard in range(shards)]
        records, size = _read(self.parts[split]), 0
        for shard, length in enumerate(lengths):
            path = template.sharded_filepath(shard_index=shard, num_shards=shards)
            writer = ArrayRecordWriter(str(path), RECORD_OPTIONS)
            try:
                for _ in range(length):
                    record = next(records)
                    size += len(record)
                    writer.write(record)
            finally:
                writer.close()
        return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _read(parts: Sequence[Part]) -> Iterator[bytes]:
    """Yield the records in order, a few in memory at a time."""
    for part in parts:
        reader = ArrayRecordReader(str(part.path))
        try:
            for start in range(0, len(part.records), _BATCH):
                yield from reader.read(part.records[start : start + _BATCH].tolist())
        finally:
            reader.close()
