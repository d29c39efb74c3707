"""The labels of every frame as integer arrays: patient, scan, machine, anatomy and split."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Int32, Shaped

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.folders import prepared_folders
from awcl_jax.data.records import Records
from awcl_jax.runtime import bucket
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import atomic_write, require_honest_zip

_MOST_BYTES = 2**30  # of the cached index of a small dataset
_CACHE = "scan_index.npz"
_CACHE_FORMAT = "1"  # a new number when what is stored changes, so that older caches are ignored
_ARRAYS = ("frame_ids", "scans", "patients", "machines", "fine", "coarse", "splits", "records")
_NAMES = ("scan_names", "patient_names", "machine_names", "fine_names", "coarse_names", "split_names")
_NUMBERED = {"scans": "scan_names", "patients": "patient_names", "machines": "machine_names"}
_TEXTS = ("frame_id", "scan_id", "patient_id", "machine")
_LABELS = ("anatomy_fine", "anatomy_coarse")
_CHUNK = 1024  # records in memory at a time while labels are read
_PIECE = 65536  # frame ids held as Python strings at a time, which need four times the memory


@dataclasses.dataclass(frozen=True, eq=False)
class ScanIndex:
    """Labels of n frames, without their images.

    A part of an index (`split`, `take`, `holdout`) keeps all names, so that ids mean the same in every part.

    Attributes:
      path: folder of the prepared dataset (TFDS's version folder).
      frame_ids: [n] unique names of the frames.
      scans: [n] scan of each frame, into `scan_names`.
      patients: [n] patient, into `patient_names`.
      machines: [n] ultrasound machine, into `machine_names`.
      fine: [n] fine anatomy, into `fine_names`, or UNLABELLED.
      coarse: [n] coarse anatomy, into `coarse_names`, or UNLABELLED.
      splits: [n] split, into `split_names`.
      records: [n] position of the frame within its split's data source.
      scan_names, patient_names, machine_names: sorted; those of joined datasets follow.
      fine_names, coarse_names: the dataset's anatomies, in its order.
      split_names: the dataset's splits, in its order.
    """

    path: Path
    frame_ids: Shaped[np.ndarray, " n"]
    scans: Int32[np.ndarray, " n"]
    patients: Int32[np.ndarray, " n"]
    machines: Int32[np.ndarray, " n"]
    fine: Int32[np.ndarray, " n"]
    coarse: Int32[np.ndarray, " n"]
    splits: Int32[np.ndarray, " n"]
    records: Int32[np.ndarray, " n"]
    scan_names: tuple[str, ...]
    patient_names: tuple[str, ...]
    machine_names: tuple[str, ...]
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    split_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            # A read-only view: sampler, pipeline and evaluators share an index.
            view = getattr(self, name).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @classmethod
    def from_dataset(cls, path: str | os.PathLike[str], *, without: Collection[tuple[str, int]] = ()) -> "ScanIndex":
        """Read the labels of a prepared dataset, or the cache beside it if that matches the dataset.

        Args:
          path: folder of the prepared dataset, or a parent folder with exactly one (such as ingest's `--out`).
          without: records to leave out, each as (split, position in it), see `data.unreadable`.

        Returns:
          The index of all its frames, split after split, in the order of the records.

        Raises:
          InputError: there is no dataset or several, one is damaged or does not have this package's record, frame ids
            are not unique, or a patient is in two splits.
        """
        path = find_dataset(path)
        key = dataset_key(path) + (json.dumps(sorted(without)) if without else "")
        index = cls._from_cache(path, key)
        if index is None:
            index = cls._from_labels(path, without)
            index._to_cache(key)
        return index

    @classmethod
    def from_columns(
        cls,
        path: Path,
        *,
        frame_ids: pa.ChunkedArray,
        scan_ids: pa.ChunkedArray,
        patient_ids: pa.ChunkedArray,
        machines: pa.ChunkedArray,
        fine: Int32[np.ndarray, " n"],
        coarse: Int32[np.ndarray, " n"],
        splits: Int32[np.ndarray, " n"],
        records: Int32[np.ndarray, " n"],
        fine_names: Sequence[str],
        coarse_names: Sequence[str],
        split_names: Sequence[str],
    ) -> "ScanIndex":
        """Make an index from columns of labels, a row for each frame.

        Args:
          path: folder of the dataset.
          frame_ids: [n] unique texts.
          scan_ids, patient_ids, machines: [n] texts, which become numbers.
          fine, coarse, splits, records, fine_names, coarse_names, split_names: as the attributes.

        Raises:
          InputError: frame ids are not unique, a patient is in two splits, or an anatomy has no name.
        """
        _require_named(path, anatomy_fine=(fine, fine_names), anatomy_coarse=(coarse, coarse_names))
        (scan_names, scans), (patient_names, patients) = _number(scan_ids), _number(patient_ids)
        machine_names, machine_of = _number(machines)
        _require_unique(frame_ids, path)
        pa.default_memory_pool().release_unused()  # Arrow would keep the table it used to compare all ids
        _require_apart(patients, splits, patient_names, split_names, path)
        return cls(
            path=path,
            frame_ids=_as_array(frame_ids),
            scans=scans,
            patients=patients,
            machines=machine_of,
            fine=fine,
            coarse=coarse,
            splits=splits,
            records=records,
            scan_names=scan_names,
            patient_names=patient_names,
            machine_names=machine_names,
            fine_names=tuple(fine_names),
            coarse_names=tuple(coarse_names),
            split_names=tuple(split_names),
        )

    def __len__(self) -> int:
        return len(self.frame_ids)

    def split(self, name: str) -> "ScanIndex":
        """Return the frames of one split.

        Raises:
          InputError: there is no such split.
        """
        if name not in self.split_names:
            raise InputError(
                f"{self.path} has no split {name!r}; it has {', '.join(self.split_names)}. Prepare scans again with "
                "--val_share and --test_share above 0, or with a column `split`."
            )
        return self.take(self.splits == self.split_names.index(name))

    def take(self, frames: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "ScanIndex":
        """Return the frames at these positions, in this order; or those marked True, as a view if consecutive."""
        assert frames.dtype != bool or len(frames) == len(self), "a mask has a value for each frame"
        chosen = _in_a_row(frames) if frames.dtype == bool else frames
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in _ARRAYS})

    def holdout(self, fraction: float | int, seed: int) -> tuple["ScanIndex", "ScanIndex"]:
        """Hold out some patients, with all their frames.

        The draw depends on the seed and the patient's name; a patient held out at a fraction is also held out at every
        greater one.

        Args:
          fraction: share of the patients, rounded; from 0 to less than 1. Above 0, at least one patient is held out.
          seed: of the draw.

        Returns:
          (the rest, the frames held out)

        Raises:
          InputError: `fraction` is out of range or leaves no patient in the rest.
        """
        if not 0.0 <= fraction < 1.0:
            raise InputError(f"The share of patients held out must be from 0 to less than 1; got {fraction}.")
        present = np.unique(self.patients).tolist()
        count = max(round(fraction * len(present)), int(fraction > 0))
        if count and count >= len(present):
            raise InputError(
                f"Holding out {fraction} of {len(present)} patient(s) leaves none for training. Lower the share or "
                "add patients."
            )

        def draw(patient: int) -> str:
            return hashlib.sha256(f"{seed}:{self.patient_names[patient]}".encode()).hexdigest()

        held_out = np.isin(self.patients, np.array(sorted(present, key=draw)[:count], np.int32))
        return self.take(~held_out), self.take(held_out)

    def join_unlabelled(self, others: Sequence["ScanIndex"]) -> "ScanIndex":
        """Append the frames of other datasets, without their labels.

        Their frames, scans, patients and machines get their dataset's name as a prefix, because `24` of one is not `24`
        of another. `path`, `splits` and `records` stay those of this index: `JoinedReader` knows where the others are.

        Raises:
          InputError: a dataset is listed twice, or two have the same name and share frame ids.
        """
        index, paths = self, {self.path}
        for other in others:
            if other.path in paths:
                raise InputError(f"{other.path} is listed twice. List it once.")
            paths.add(other.path)
            name = json.loads((other.path / "dataset_info.json").read_text())["name"]
            ids = np.array([f"{name}/{frame_id}" for frame_id in other.frame_ids.tolist()], np.str_)
            if np.isin(ids, index.frame_ids).any():
                raise InputError(
                    f"{other.path} and another dataset are both named {name!r} and share frame ids. Prepare one under "
                    "another name."
                )
            count = len(other)
            joined: dict[str, Any] = {"frame_ids": np.concatenate([index.frame_ids, ids])}
            for column, names in _NUMBERED.items():
                before: tuple[str, ...] = getattr(index, names)
                joined[names] = (*before, *(f"{name}/{one}" for one in getattr(other, names)))
                joined[column] = np.concatenate(
                    [getattr(index, column), getattr(other, column) + np.int32(len(before))]
                )
            for column, value in {"fine": UNLABELLED, "coarse": UNLABELLED, "splits": -1, "records": -1}.items():
                joined[column] = np.concatenate([getattr(index, column), np.full(count, value, np.int32)])
            index = dataclasses.replace(index, **joined)
        return index

    def labels(self, granularity: str) -> Int32[np.ndarray, " n"]:
        """Return the anatomy of each frame, fine or coarse, or UNLABELLED.

        Raises:
          InputError: `granularity` is neither.
        """
        if granularity not in ("fine", "coarse"):
            raise InputError(f"The granularity must be 'fine' or 'coarse'; got {granularity!r}.")
        return self.fine if granularity == "fine" else self.coarse

    @property
    def fingerprint(self) -> str:
        """A hash (16 hex digits) of the frames and their labels, wherever the dataset is."""
        digest = hashlib.sha256()
        for name in _NAMES:
            digest.update(json.dumps([name, getattr(self, name)]).encode())
        digest.update(b"[")
        for start in range(0, len(self), _PIECE):
            piece = json.dumps(self.frame_ids[start : start + _PIECE].tolist())
            digest.update((", " * (start > 0) + piece[1:-1]).encode())
        digest.update(b"]")
        for name in ("scans", "patients", "machines", "fine", "coarse", "splits"):
            digest.update(getattr(self, name).astype("<i4").tobytes())
        return digest.hexdigest()[:16]

    @classmethod
    def _from_labels(cls, path: Path, without: Collection[tuple[str, int]]) -> "ScanIndex":
        records = Records(path)
        texts: dict[str, list[pa.Array]] = {name: [] for name in _TEXTS}
        numbers: dict[str, list[np.ndarray]] = {name: [] for name in (*_LABELS, "split", "record")}
        for split, name in enumerate(records.splits):
            left_out = {position for of, position in without if of == name}
            for positions, read in _read_labels(records, name, left_out):
                for feature in _TEXTS:
                    texts[feature].append(pa.array([record[feature] for record in read], pa.string()))
                for feature in _LABELS:
                    numbers[feature].append(np.array([record[feature] for record in read], np.int32))
                numbers["split"].append(np.full(len(positions), split, np.int32))
                numbers["record"].append(np.array(positions, np.int32))
        column = {name: pa.chunked_array(chunks, pa.string()) for name, chunks in texts.items()}
        array = {name: np.concatenate([np.zeros(0, np.int32), *chunks]) for name, chunks in numbers.items()}
        return cls.from_columns(
            path,
            frame_ids=column["frame_id"],
            scan_ids=column["scan_id"],
            patient_ids=column["patient_id"],
            machines=column["machine"],
            fine=array["anatomy_fine"],
            coarse=array["anatomy_coarse"],
            splits=array["split"],
            records=array["record"],
            fine_names=records.info.features["anatomy_fine"].names,
            coarse_names=records.info.features["anatomy_coarse"].names,
            split_names=records.splits,
        )

    @classmethod
    def _from_cache(cls, path: Path, key: str) -> "ScanIndex | None":
        """Return the cached index, or None if there is none that matches this dataset."""
        try:
            require_honest_zip(path / _CACHE, most=_MOST_BYTES)
            with np.load(path / _CACHE, allow_pickle=False) as stored:
                if str(stored["key"]) != key:
                    return None
                fields: dict[str, Any] = {name: stored[name] for name in _ARRAYS}
                fields |= {name: tuple(stored[name].tolist()) for name in _NAMES}
            return cls(path=path, **fields) if _fit_together(fields) else None
        except Exception:  # a damaged file makes NumPy, zipfile and zlib raise many kinds
            return None

    def _to_cache(self, key: str) -> None:
        fields: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        fields |= {name: np.array(getattr(self, name), dtype=np.str_) for name in _NAMES}
        # A dataset on a read-only disk works too, but opens more slowly.
        with contextlib.suppress(OSError), atomic_write(self.path / _CACHE) as part, part.open("wb") as file:
            np.savez(file, key=np.array(key), **fields)


def _fit_together(fields: dict[str, Any]) -> bool:
    """Return whether arrays and names read from a file form a valid index."""
    ids, counts = fields["frame_ids"], {"fine": "fine_names", "coarse": "coarse_names", "splits": "split_names"}
    numbers = [fields[name] for name in _ARRAYS if name != "frame_ids"]
    return (
        ids.dtype.kind == "U"
        and all(isinstance(name, str) for names in _NAMES for name in fields[names])
        and all(array.dtype == np.int32 and array.shape == ids.shape == (ids.size,) for array in numbers)
        and all((fields[name] < len(fields[names])).all() for name, names in {**_NUMBERED, **counts}.items())
        and all((fields[name] >= (UNLABELLED if name in ("fine", "coarse") else 0)).all() for name in _ARRAYS[1:])
    )


def find_dataset(path: str | os.PathLike[str]) -> Path:
    """Return the one prepared dataset at or below a folder; for a bucket, the copy on this host.

    Raises:
      InputError: there is no such folder or bucket, or it has no dataset or several.
    """
    root = bucket.local_dataset(path)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}. To prepare a dataset, see `python -m awcl_jax.ingest --help`.")
    found = sorted(prepared_folders(root))
    if not found:
        run = " It is the folder of a run." if (root / "config.json").is_file() else ""
        raise InputError(
            f"{root} has no prepared dataset.{run} To prepare one, see `python -m awcl_jax.ingest --help`."
        )
    if len(found) > 1:
        raise InputError(f"{root} has {len(found)} datasets. Use the folder of one: {', '.join(map(str, found))}.")
    return found[0].absolute()


def dataset_key(path: Path) -> str:
    """Return a key that changes whenever the files of the dataset change.

    It includes modification times: a corrected label may not change any size.
    """
    digest = hashlib.sha256(_CACHE_FORMAT.encode())
    for file in sorted(path.iterdir()):
        if file.is_file() and ".array_record" in file.name:
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        elif file.name in ("dataset_info.json", "features.json") or file.name.endswith(".labels.txt"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _read_labels(
    records: Records, split: str, left_out: Collection[int]
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Yield positions and records of a split, except those left out, some at a time."""
    count = records.count(split)
    for start in range(0, count, _CHUNK):
        positions = [at for at in range(start, min(start + _CHUNK, count)) if at not in left_out]
        if positions:
            yield positions, records.read_many(split, positions)


def _require_named(path: Path, **features: tuple[Int32[np.ndarray, " n"], Sequence[str]]) -> None:
    for feature, (labels, names) in features.items():
        if labels.size and not (labels.min() >= UNLABELLED and labels.max() < len(names)):
            raise InputError(
                f"{path} has frames of {feature} {labels.max()}, but {feature}.labels.txt has {len(names)} name(s), "
                "which are counted from 0. Restore that file or prepare the dataset again."
            )


def _require_unique(frame_ids: pa.ChunkedArray, path: Path) -> None:
    if len(pc.unique(frame_ids)) == len(frame_ids):  # four times as fast as count_distinct
        return
    counted = pc.value_counts(frame_ids)
    repeated = sorted(counted.field("values").filter(pc.greater(counted.field("counts"), 1)).to_pylist())
    raise InputError(
        f"{path} has {len(repeated)} frame id(s) more than once, the first is {repeated[0]!r}. Frame ids must be "
        "unique."
    )


def _require_apart(
    patients: Int32[np.ndarray, " n"],
    splits: Int32[np.ndarray, " n"],
    patient_names: Sequence[str],
    split_names: Sequence[str],
    path: Path,
) -> None:
    is_in = np.zeros((len(patient_names), len(split_names)), bool)
    is_in[patients, splits] = True
    shared = np.flatnonzero(is_in.sum(axis=1) > 1)
    if shared.size:
        first = [split_names[split] for split in np.flatnonzero(is_in[shared[0]]).tolist()]
        raise InputError(
            f"{path} has {shared.size} patient(s) in several splits, the first is {patient_names[shared[0]]!r} in "
            f"{' and '.join(first)}. Split the data by patient."
        )


def _number(texts: pa.ChunkedArray) -> tuple[tuple[str, ...], Int32[np.ndarray, " n"]]:
    """Return the sorted distinct names, and the position of each text among them."""
    encoded = pa.chunked_array(texts).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    position = np.empty(len(names), np.int32)
    position[order] = np.arange(len(names), dtype=np.int32)
    return tuple(names[at] for at in order), position[encoded.indices.to_numpy()]


def _as_array(texts: pa.ChunkedArray) -> Shaped[np.ndarray, " n"]:
    """Return the texts as a NumPy array, all of the longest one's width."""
    width = pc.max(pc.utf8_length(texts)).as_py() or 1
    array = np.empty(len(texts), f"U{width}")
    for start in range(0, len(texts), _PIECE):
        array[start : start + _PIECE] = texts.slice(start, _PIECE).to_numpy()
    return array


def _in_a_row(mask: Bool[np.ndarray, " n"]) -> slice | Bool[np.ndarray, " n"]:
    """Return the mask as a slice if it marks consecutive frames: a split of millions of frames then needs no copy."""
    start, count = int(mask.argmax()) if mask.size else 0, int(mask.sum())
    return slice(start, start + count) if mask[start : start + count].all() else mask
