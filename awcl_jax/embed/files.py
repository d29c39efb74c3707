"""Frames of a user's files for an encoder: everything that `awcl_jax.ingest` reads, read as it reads it.

Nothing here imports JAX, so that a source without frames is refused at once.

- Prepared datasets, and pictures of which all is used, are read in threads by `awcl_jax.data.sources`.
- Clips, DICOM, and pictures with a region, a window or a key are read here, one file after the other, as `ingest` reads
  them: the same regions (of all files, or of one in the column `region` of a table), limits, near duplicates and names.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8

from awcl_jax.data import images
from awcl_jax.data.about import is_cut
from awcl_jax.data.folders import holds_dataset
from awcl_jax.data.square import Square
from awcl_jax.data.tables import LABELS, read_labels
from awcl_jax.embed.check import is_encoder
from awcl_jax.embed.options import FileOptions
from awcl_jax.ingest.own import dicom, folder, videos
from awcl_jax.ingest.own import images as own_images
from awcl_jax.ingest.own.items import REGIONS, BadFileError, Clip, Fault, Reading, Rectangle, Row, steps_of
from awcl_jax.ingest.own.manifest import parse_labels, texts_of, to_text
from awcl_jax.ingest.own.paths import composed, in_utf_8
from awcl_jax.ingest.own.privacy import KEY_VARIABLE, Pseudonyms, read_key
from awcl_jax.ingest.own.reading_flags import region_of
from awcl_jax.runtime import bucket
from awcl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    from awcl_jax.data.sources import FrameSource

FRAME_NUMBER = "frame_number"
_REGION = "region"

_CLIPS = tuple(ending for ending in videos.SUFFIXES if ending not in images.IMAGES)
_OPENERS: Mapping[str, Callable[[Path, Reading], Clip]] = {
    "image": own_images.open_image,
    "video": videos.open_video,
    "dicom": dicom.open_dicom,
}
_NAMES = {"image": "pictures", "video": "clips", "dicom": "DICOM"}


@dataclasses.dataclass(frozen=True, eq=False)
class FileFrames:
    """The kept frames of one file.

    Attributes:
      labels: a row for each.
      numbers: place of each in its file, from 0.
      images: as the encoder gets them.
    """

    labels: pa.Table
    numbers: list[int]
    images: list[UInt8[np.ndarray, "size size"]]


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Files with any number of frames each.

    Attributes:
      files: each with its kind.
      labels: columns of the user's table, a row for each file; None without a table.
      options: how they are read.
      pseudonyms: hashes of ids.
    """

    files: list[tuple[str, Row]]
    labels: pa.Table | None
    options: FileOptions
    pseudonyms: Pseudonyms

    def __len__(self) -> int:
        return len(self.files)

    @property
    def columns(self) -> list[str]:
        """Names of the columns of the labels."""
        return self._schema.names

    @property
    def _schema(self) -> pa.Schema:
        number = pa.field(FRAME_NUMBER, pa.int64())
        if self.pseudonyms.keyed:
            return pa.schema([*((name, pa.string()) for name in ("id", *LABELS)), number])
        theirs = pa.schema([("id", pa.string())]) if self.labels is None else self.labels.schema
        more = [pa.field(name, pa.string()) for name in ("scan_id", "machine") if name not in theirs.names]
        id_as_text = theirs.set(theirs.get_field_index("id"), pa.field("id", pa.string()))
        return pa.schema([*id_as_text, *more, number])

    def read(self, file: int, square: Square) -> FileFrames:
        """Read the frames of a file.

        Raises:
          InputError: it cannot be used; of DICOM, the message has a hash of its path and no value of its tags.
        """
        kind, row = self.files[file]
        try:
            clip, made = self._open(file)
            kept = list(self._frames(clip, file, square))
        except BadFileError as error:
            hidden = f"file {row.number}, id {self.pseudonyms.digest('file', row.shown)}"
            place = hidden if kind == "dicom" else row.shown or f"row {row.number}"
            raise InputError(f"{place}: {Fault(row.number, error.kind, error.detail).rule}.") from None
        numbers, ids = [frame.number for frame in kept], [self._id(kind, row, file, frame) for frame in kept]
        columns = {name: [value] * len(kept) for name, value in made.items()} | {"id": ids, FRAME_NUMBER: numbers}
        table = pa.table([self._column(field, columns, file) for field in self._schema], schema=self._schema)
        return FileFrames(table, numbers, [frame.image for frame in kept])

    def _column(self, field: pa.Field, made: Mapping[str, list[Any]], file: int) -> pa.Array | pa.ChunkedArray:
        """Return a column of a file's rows: what the user's table says, if it may be shown, else what is made here."""
        rows = len(made["id"])
        shown = None if self.pseudonyms.keyed else self.labels
        if shown is not None and field.name in shown.column_names and field.name != "id":
            # Not by way of Python, which lacks some of Arrow's types.
            return shown[field.name].take(pa.array([file] * rows, pa.int64()))
        return pa.array(made.get(field.name, [None] * rows), field.type)

    def _cell(self, name: str, file: int) -> Any:
        """Return what the user's table says of a file; None without such a column."""
        if self.labels is None or name not in self.labels.column_names:
            return None
        return self.labels[name][file].as_py()

    def picture(self, file: int, number: int, square: Square) -> UInt8[np.ndarray, "size size"]:
        """Read one of the frames of a file again."""
        clip, _ = self._open(file)
        frames = self._frames(clip, file, square)
        return next(frame.image for frame in frames if frame.number == number)

    def _open(self, file: int) -> tuple[Clip, dict[str, Any]]:
        """Open a file, and return it with the columns that are made here."""
        kind, row = self.files[file]
        if not row.shown:
            raise BadFileError("bad_cell", "path is empty")
        scan, patient = row.scan or (row.shown if kind == "video" else ""), row.patient
        if kind == "dicom":
            named = dicom.read_ids(row.path)
            patient, scan = patient or named[0], scan or named[1]
        else:
            patient = patient or scan
        clip = _OPENERS[kind](row.path, self.options.reading(kind))
        machine = row.machine or clip.machine or None
        if not self.pseudonyms.keyed:
            return clip, {"scan_id": in_utf_8(scan) or None, "machine": machine}
        hashes = {
            f"{of}_id": self.pseudonyms.digest(of, name) if name else None
            for of, name in (("scan", scan), ("patient", patient))
        }
        return clip, {name: self._cell(name, file) for name in ("anatomy", "split")} | hashes | {"machine": machine}

    def _id(self, kind: str, row: Row, file: int, frame: "_Frame") -> str:
        if self.pseudonyms.keyed:
            return frame.frame_id
        named = self._cell("id", file) or in_utf_8(row.shown)
        return str(named) if kind == "image" else f"{named}#{frame.number}"

    def _region(self, file: int) -> Rectangle | None:
        """Return the rectangle that the table names for a file."""
        region: Rectangle | None = parse_labels(texts_of({_REGION: self._cell(_REGION, file)}))["region"]
        return region

    def _frames(self, clip: Clip, file: int, square: Square) -> Iterator["_Frame"]:
        from awcl_jax.ingest.own.chunks import Outcome, kept_frames  # imports TFDS

        reading, outcome = self.options.reading(self.files[file][0]), Outcome(start=0)
        nothing = True
        for frame in kept_frames(clip, self._region(file) or reading.region, reading, outcome):
            nothing = False
            yield _Frame(frame.number * reading.every, frame.frame_id, square.of(frame.image))
        if nothing:
            raise BadFileError("blank" if outcome.blank else "no_pixels")


class _Frame(NamedTuple):
    """Place in its file from 0, id by its pixels, and picture as the encoder gets it."""

    number: int
    frame_id: str
    image: UInt8[np.ndarray, "size size"]


def open_files(
    path: str | os.PathLike[str], *, split: str | None, options: FileOptions, paths: bool = False
) -> "FileSource | FrameSource":
    """Open a source of frames; nothing is decoded yet.

    Args:
      path: as of `awcl_jax.data.sources.open_source`; or a folder, a file or a table with clips or DICOM.
      split: of a prepared dataset; by default all.
      options: how files are read; of no use for a prepared dataset.
      paths: add the columns `path` and `frame_number` to the labels of a dataset, from its private table.

    Returns:
      A `FileSource`, or a `FrameSource` of a prepared dataset or of pictures that are used as they are.

    Raises:
      InputError: there is no source, it has no frames, a package or the key is missing, or an option does not fit.
    """
    local = bucket.local_dataset(path)
    if local.is_dir() and is_encoder(local):
        raise InputError(f"{local} is an encoder, not frames. Use `python -m awcl_jax.embed ENCODER SOURCE`.")
    if not (local.is_dir() or local.is_file()):
        what = "is not a regular file" if local.exists() else "does not exist"
        raise InputError(f"The source {local} {what}. Use a dataset, a folder, a picture, a clip, DICOM or a table.")
    if local.is_dir() and holds_dataset(local):
        return _with_paths(_plain(local, split), local) if paths else _plain(local, split)
    if paths:
        raise InputError(
            f"--paths needs a prepared dataset of your own scans; {local} is not one. Omit --paths: without "
            "--key_file, the column id begins with the path of the picture or clip."
        )
    if split is not None:
        raise InputError(f"--split needs a prepared dataset; {local} is not one. Omit --split.")
    files, labels = _listed(local)
    kinds_found = {kind for kind, _ in files}
    regions = labels is not None and _REGION in labels.column_names
    if kinds_found == {"image"} and options.all_of_plain_pictures and not regions:
        return _plain(local, split)
    _require(kinds_found, options)
    pseudonyms = Pseudonyms(read_key(options.key_file))
    if "dicom" in kinds_found and not pseudonyms.keyed:
        raise InputError(
            f"DICOM needs a key to hash ids with: set --key_file=FILE or the variable {KEY_VARIABLE}. Make one with "
            "`(umask 077; openssl rand -hex 32 > KEY_FILE)`."
        )
    return FileSource(files, labels, options, pseudonyms)


def cut_as_trained(
    path: str | os.PathLike[str], frames: "FileSource | FrameSource", *, options: FileOptions, region: str
) -> "FileSource | FrameSource":
    """Return a source with its files cut as the training frames of an encoder were, if the user does not say how.

    What is done is said on stderr. A prepared dataset stays as it is.

    Args:
      path: of the source.
      frames: the source, as `open_files` opened it.
      options: likewise.
      region: of the encoder's training frames, as `--region`; empty if it is unknown.
    """
    if options.region is not None or not is_cut(region) or holds_dataset(bucket.local_dataset(path)):
        return frames
    kinds = {kind for kind, _ in frames.files} if isinstance(frames, FileSource) else {"image"}
    try:
        again = dataclasses.replace(options, region=region_of(region))
        _require(kinds, again)
    except (InputError, argparse.ArgumentTypeError):
        print(
            f"warning: the encoder's training frames were cut with --region={region}, which is none of "
            f"{' and '.join(_NAMES[kind] for kind in sorted(kinds))}: set --region, or features are not comparable.",
            file=sys.stderr,
        )
        return frames
    print(
        f"Cut with --region={region}, as the encoder's training frames; --region=whole changes that.", file=sys.stderr
    )
    return open_files(path, split=None, options=again)


def _plain(path: Path, split: str | None) -> "FrameSource":
    from awcl_jax.data.sources import open_source  # imports TFDS

    return open_source(path, split=split)


def _with_paths(source: "FrameSource", folder: Path) -> "FrameSource":
    """Return the frames of a dataset with the files that they were made from."""
    from awcl_jax.data.private_table import private_table_of, read_private_table
    from awcl_jax.data.scans import find_dataset

    dataset = find_dataset(folder)
    table = read_private_table(dataset)
    if table is None:
        raise InputError(
            f"There is no private table {private_table_of(dataset)} of the files of {dataset}. Prepare the dataset "
            "again with --keep_paths, or omit --paths."
        )
    rows = pc.index_in(source.labels["id"], value_set=table["frame_id"])
    labels = source.labels.append_column("path", table["path"].take(rows))
    return dataclasses.replace(source, labels=labels.append_column(FRAME_NUMBER, table["frame"].take(rows)))


def _listed(path: Path) -> tuple[list[tuple[str, Row]], pa.Table | None]:
    """Return the files of a source, each with its kind, and the labels that a table has for them."""
    if path.is_dir():
        names = images.find_files(path)
        found = [(kind, name) for name in names if (kind := _kind_of(path / name))]
        if not found:
            others = f" ({len(names):,} other files)" if names else ", it is empty"
            raise InputError(f"{path} has neither a prepared dataset nor pictures, clips or DICOM{others}.")
        return [(kind, _in_folder(number, path / name, name)) for number, (kind, name) in enumerate(found, 1)], None
    if path.suffix.lower() in images.TABLES:
        labels = read_labels(path)
        return list(_in_table(labels, path.parent)), labels
    if kind := _kind_of(path):
        return [(kind, _in_folder(1, path, path.name))], None
    raise InputError(
        f"The source must be a folder, DICOM, or a file that ends in {', '.join((*images.IMAGES, *_CLIPS))} or, for "
        f"tables, {', '.join(images.TABLES)}; got {path}."
    )


def _kind_of(path: Path) -> str | None:
    """Return `image`, `video` or `dicom`; None for other files."""
    name = path.name.lower()
    if name.endswith(images.IMAGES):
        return "image"
    if name.endswith(_CLIPS):
        return "video"
    return "dicom" if dicom.is_dicom(path) else None


def _in_folder(number: int, path: Path, name: str) -> Row:
    row = Row(number, path, name, scan="")
    # As `ingest` names the patients of clips in a folder.
    return dataclasses.replace(row, patient=folder.top_folder(row)) if _kind_of(path) == "video" else row


def _in_table(labels: pa.Table, root: Path) -> Iterator[tuple[str, Row]]:
    """Yield the files of a table; one that is of no known kind is a picture that cannot be read."""
    columns = [
        labels[name].to_pylist() if name in labels.column_names else [None] * len(labels)
        for name in ("path", "scan_id", "patient_id", "machine")
    ]
    for number, (name, *ids) in enumerate(zip(*columns, strict=True), 1):
        scan, patient, machine = (to_text(cell, strip=True) for cell in ids)
        path = images.find_named(root, name or "")
        yield (
            _kind_of(path) or "image",
            Row(number, path, name or "", composed(scan), composed(patient), machine=machine),
        )


def _require(kinds: set[str], options: FileOptions) -> None:
    """Refuse options that do not fit the files, and missing packages."""
    steps = () if options.region is None else steps_of(options.region)
    for kind in sorted(kinds):
        if foreign := [step for step in steps if isinstance(step, str) and step not in REGIONS[kind]]:
            known = ", ".join(REGIONS[kind])
            raise InputError(f"--region of {_NAMES[kind]} must be {known} or X0,Y0,X1,Y1; got {foreign[0]!r}.")
    if "video" in kinds:
        videos.require_av()
    if "dicom" in kinds:
        dicom.require_pydicom()
