"""The frames that a run trains, validates and tests on, and the labels of its loss."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from awcl_jax.data import anatomy
from awcl_jax.data.about import About, apart
from awcl_jax.data.anatomy import UNLABELLED, keep_anatomy_ratio
from awcl_jax.data.reader import FrameReader, JoinedReader
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.unreadable import Unreadable, find_unreadable
from awcl_jax.runtime.errors import InputError

POSITIVES = ("anatomy", "scan", "frame")
GRANULARITIES = (*anatomy.GRANULARITIES, "both")

_COUNTED = 20  # batches whose unlabelled frames are counted
_FAR = 0.1  # of a batch: more unlabelled frames than that above their share are worth a line


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Frames of one purpose, with their reader."""

    index: ScanIndex
    reader: FrameReader


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """Frames of a dataset by purpose; each patient has only one.

    Attributes:
      fingerprint: of the whole dataset, without the frames left out.
      train: frames for pretraining, and to fit evaluators on.
      val: frames to select models with.
      test: frames for the reported scores.
      left_out: frames that cannot be read, each with the folder of its dataset.
      datasets: what the datasets say about themselves, the labelled one first.
    """

    fingerprint: str
    train: Split
    val: Split
    test: Split
    left_out: tuple[tuple[Path, Unreadable], ...] = ()
    datasets: tuple[About, ...] = ()

    @property
    def aspect(self) -> str:
        """How its frames are made square, see `data.square`."""
        return self.train.reader.aspect

    def pixels_fingerprint(self) -> str:
        """Return a hash of the pixels of some frames of every part, see `FrameReader.pixels_fingerprint`."""
        return "+".join(part.reader.pixels_fingerprint() for part in (self.train, self.val, self.test))


def select(
    path: str | Path,
    *,
    size: int,
    cache_mb: float,
    val_share: float,
    seed: int,
    mask_overlays: bool = False,
    unlabelled: Sequence[str | Path] = (),
    skip_unreadable: bool = False,
    disk_cache_gb: float = 0,
) -> Splits:
    """Return the splits of a prepared dataset.

    Args:
      path: folder of the dataset, or gs://BUCKET/FOLDER.
      size: edge in pixels of the frames as read.
      cache_mb: decoded frames of a split are kept in memory when they fit.
      val_share: share of the training patients held out if the dataset has no `val` split.
      seed: of that draw.
      mask_overlays: set pixels outside of a frame's sector to 0.
      unlabelled: folders of further datasets; the frames of their `train` splits are added without labels.
      skip_unreadable: skip unreadable frames; all frames are read once to find them, see `data.unreadable`.
      disk_cache_gb: decoded frames of a dataset stay on disk in at most this space, see `data.decoded`.

    Raises:
      InputError: no such dataset, it has no train or test split, a further one is listed twice, or a record cannot
        be read and is not skipped.
    """
    left_out: list[tuple[Path, Unreadable]] = []

    def readable(folder: str | Path) -> ScanIndex:
        found = find_unreadable(folder) if skip_unreadable else ()
        index = ScanIndex.from_dataset(folder, without=[(frame.split, frame.record) for frame in found])
        left_out.extend((index.path, frame) for frame in found)
        return index

    index = readable(path)
    train, test = index.split("train"), index.split("test")
    if "val" in index.split_names:
        val = index.split("val")
    else:
        train, val = train.holdout(val_share, seed)

    def reader(part: ScanIndex, others: Sequence[ScanIndex] = ()) -> FrameReader:
        if others:
            return JoinedReader(part, others, size, cache_mb, mask_overlays=mask_overlays, disk_cache_gb=disk_cache_gb)
        return FrameReader(part, size, cache_mb, mask_overlays=mask_overlays, disk_cache_gb=disk_cache_gb)

    others = [readable(folder).split("train") for folder in unlabelled]
    readers = reader(train, others), reader(val), reader(test)
    joined = f"+{readers[0].index.fingerprint}" if others else ""
    train_part, val_part, test_part = (Split(reader.index, reader) for reader in readers)
    datasets = tuple(About.read(one.path) for one in (index, *others))
    return Splits(index.fingerprint + joined, train_part, val_part, test_part, tuple(left_out), datasets)


def positive_labels(
    index: ScanIndex, positives: str, *, granularity: str, anatomy_ratio: float, seed: int
) -> Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]:
    """Return the labels of the loss: frames of one label attract each other, UNLABELLED ones only their own views.

    With the granularity `both`, a frame has two labels, fine and coarse; coarse ids follow the fine ones.

    Args:
      index: the training frames.
      positives: `anatomy` (AWCL), `scan` (patient metadata) or `frame` (SimCLR).
      granularity: of the anatomy: `fine`, `coarse` or `both`.
      anatomy_ratio: share of the labelled frames whose anatomy may be used.
      seed: of their draw.

    Raises:
      InputError: `positives` is none of the three.
    """
    if positives == "anatomy" and granularity == "both":
        return _both(index, anatomy_ratio, seed)
    if positives == "anatomy":
        return keep_anatomy_ratio(index.labels(granularity), anatomy_ratio, seed=seed)
    if positives == "scan":
        return index.scans
    if positives == "frame":
        return np.full(len(index), UNLABELLED, np.int32)
    raise InputError(f"Positives must be 'anatomy', 'scan' or 'frame'; got {positives!r}.")


def _both(index: ScanIndex, anatomy_ratio: float, seed: int) -> Int[np.ndarray, "n 2"]:
    """Return fine and coarse labels; a frame keeps both or none."""
    coarse = np.where(index.coarse == UNLABELLED, UNLABELLED, len(index.fine_names) + index.coarse)
    labels = np.stack([index.fine, coarse], axis=1)
    kept = keep_anatomy_ratio(labels.max(axis=1), anatomy_ratio, seed=seed) != UNLABELLED
    return np.where(kept[:, None], labels, UNLABELLED)


def nothing_apart(labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]) -> str:
    """Return one sentence where all frames with a label have the same, so that it tells none apart; else nothing.

    Without other frames, such a loss is least where every frame has the same embedding. Of two labels, fine and coarse,
    both must be the same in all: a frame without one of them is there pushed apart from all others.
    """
    columns = labels.reshape(len(labels), -1)
    labelled = columns[(columns != UNLABELLED).any(axis=1)]
    if not len(labelled) or (labelled == UNLABELLED).any() or (labelled != labelled[0]).any():
        return ""
    others = len(labels) - len(labelled)
    pushed = f"apart from the {others:,} without a label alone" if others else "pushes none apart"
    return (
        f"all {len(labelled):,} training frames with a label have the same, so the loss pulls all of them together "
        f"{'and ' * (not others)}{pushed}; configs/simclr.py and configs/scan.py need no labels"
    )


def more_unlabelled(labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"], plan: BatchPlan) -> str:
    """Return one sentence where far more frames of a batch are unlabelled than `unlabelled_share`; else nothing.

    A batch has one frame of each scan of each of its anatomies at most, and unlabelled frames in its other rows.
    """
    if plan.mode != "balanced":
        return ""
    none = (labels.reshape(len(labels), -1) == UNLABELLED).all(axis=1)
    found = float(np.mean([none[plan.frames(step)].mean() for step in range(_COUNTED)]))
    if found <= plan.unlabelled_share + _FAR:
        return ""
    fitting = max(2, math.floor((1 - found) * plan.batch_size / (1 - plan.unlabelled_share)))
    more = "" if plan.anatomies is None else "or more sampler.anatomies, "
    return (
        f"{found:.0%} of the frames of a batch have no label, not sampler.unlabelled_share={plan.unlabelled_share:g}: "
        f"its anatomies have too few labelled scans for {plan.batch_size} frames. Use a sampler.batch_size of about "
        f"{fitting}, {more}or label more scans (config.anatomy_ratio)"
    )


def keep_label_fraction(strata: Int[np.ndarray, " n"], fraction: float, *, seed: int) -> Int[np.ndarray, " m"]:
    """Return which labelled training frames keep their label, to simulate scarce labels.

    The seed sets an order of the frames that begins with one of each class, so that every class is present, and the
    frames of a lower fraction are among those of a higher one.

    Args:
      strata: class of each labelled frame.
      fraction: share of the frames, above 0 to 1; rounded to whole frames.
      seed: of the draw.

    Returns:
      positions of the kept frames, ascending.

    Raises:
      InputError: the fraction is out of range, or leaves fewer frames than there are classes.
    """
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"The label fraction must be above 0 and at most 1; got {fraction}.")
    order = np.random.default_rng([seed, 0x1ABE]).permutation(strata.size)
    classes, first = np.unique(strata[order], return_index=True)
    count = round(fraction * strata.size)
    if count < classes.size:
        raise InputError(
            f"A label fraction of {fraction} keeps {count} of {strata.size} training frames, fewer than the "
            f"{classes.size} classes. Use at least {np.ceil(1000 * classes.size / strata.size) / 1000:g}."
        )
    first.sort()
    order = np.concatenate([order[first], np.delete(order, first)])
    return np.sort(order[:count])


def make_plan(
    index: ScanIndex,
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"],
    positives: str,
    *,
    batch_size: int,
    seed: int,
    mode: str,
    anatomies: int | None,
    scans_per_anatomy: int,
    unlabelled_share: float,
    pairs: str,
) -> BatchPlan:
    """Make the plan of batches: anatomies x distinct scans, or scans x distinct frames if the positives are scans.

    Where frames have two labels, batches are composed by the first, the fine one.

    Raises:
      InputError: as `BatchPlan`; scans are to be pulled together, and none has two frames; or the only labels are
        coarse ones, and batches are composed by fine ones.
    """
    composed = mode == "balanced" or pairs == "cross_scan"
    classes = labels if labels.ndim == 1 else labels[:, 0]
    coarse, none = np.count_nonzero(index.coarse != UNLABELLED), (classes == UNLABELLED).all()
    if positives == "anatomy" and composed and none and coarse and (index.fine == UNLABELLED).all():
        raise InputError(
            f"No training frame has a fine label to compose batches by; {coarse:,} have a coarse one: set "
            "config.granularity='coarse', with config.anatomy_ratio above 0."
        )
    if positives == "scan" and composed and np.unique(labels, return_counts=True)[1].max(initial=0) < 2:
        raise InputError(
            f"Each of the {len(index):,} training scans has one frame, so there is no pair of frames of one scan to "
            "compose; name the scans of frames that belong together, or take each frame alone (configs/simclr.py)."
        )
    return BatchPlan(
        classes=classes,
        units=np.arange(len(index)) if positives == "scan" else index.scans,
        batch_size=batch_size,
        seed=seed,
        mode=mode,
        anatomies=anatomies,
        units_per_class=scans_per_anatomy,
        unlabelled_share=unlabelled_share,
        pairs=pairs,
    )


def anatomies_in_batches(index: ScanIndex, plan: BatchPlan, *, steps: int) -> dict[str, Any]:
    """Count how often each fine anatomy appears in batches, and in the training frames.

    Args:
      index: the training frames.
      plan: of the batches.
      steps: number of batches, from the first.

    Returns:
      `batches`, their number; `anatomies`, names, the last is `unlabelled`; `training_frames` and `drawn`, the frames
      of each anatomy in the training set and in all these batches.
    """
    drawn = np.concatenate([plan.frames(step) for step in range(steps)])
    # UNLABELLED, -1, is counted as the last.
    k = len(index.fine_names)
    training, batches = (np.bincount(fine % (k + 1), minlength=k + 1) for fine in (index.fine, index.fine[drawn]))
    return {
        "batches": steps,
        "anatomies": [*index.fine_names, "unlabelled"],
        "training_frames": training.tolist(),
        "drawn": batches.tolist(),
    }


def counts(selection: Splits) -> dict[str, dict[str, int]]:
    """Count frames, frames with a fine or coarse label, scans and patients by purpose."""
    parts: dict[str, ScanIndex] = {name: getattr(selection, name).index for name in ("train", "val", "test")}
    return {
        name: {
            "frames": len(index),
            "labelled": int(((index.fine != UNLABELLED) | (index.coarse != UNLABELLED)).sum()),
            "scans": len(np.unique(index.scans)),
            "patients": len(np.unique(index.patients)),
        }
        for name, index in parts.items()
    }


def row_of(index: ScanIndex, frame: int | np.integer) -> dict[str, str]:
    """Return what a table of test frames says of a frame whatever the task: its id, patient and machine."""
    return {
        "frame": str(index.frame_ids[frame]),
        "patient": index.patient_names[index.patients[frame]],
        "machine": index.machine_names[index.machines[frame]],
    }


def frames_by_machine(index: ScanIndex, frames: Int[np.ndarray, " n"] | None = None) -> dict[str, int]:
    """Count the frames of each ultrasound machine, by its name: all of the index, or these."""
    machines = index.machines if frames is None else index.machines[frames]
    counts = np.bincount(machines, minlength=len(index.machine_names))
    return {name: int(n) for name, n in zip(index.machine_names, counts, strict=True) if n}


def count_unreadable(selection: Splits) -> dict[str, int]:
    """Count the frames left out because they cannot be read, by split, over all datasets."""
    return dict(collections.Counter(frame.split for _, frame in selection.left_out))


def describe(selection: Splits) -> str:
    """Return the datasets' names and `counts` as text, a line for each purpose, and what patients rest on."""
    lines = [f"data {selection.train.index.path} ({selection.fingerprint})"]
    lines += [f"  {dataset.title}" for dataset in selection.datasets]
    lines += [
        f"  {name:5} {n['frames']:6} frames, {n['labelled']:6} of them labelled, {n['scans']:4} scans of "
        f"{n['patients']:4} patients"
        for name, n in counts(selection).items()
    ]
    lines += [f"  {apart(selection.datasets)}"] if selection.datasets else []
    if unreadable := count_unreadable(selection):
        lines.append(f"  skipped as unreadable: {', '.join(f'{n} of {s}' for s, n in unreadable.items())}")
    return "\n".join(lines)
