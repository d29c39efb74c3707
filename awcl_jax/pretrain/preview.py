"""A look at the batches and views of a run before it is trained: nothing of the model is compiled."""

import collections
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import two_views
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan, composition
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.selection import Split
from awcl_jax.pretrain.pictures import caption, shown_on
from awcl_jax.report import drawing
from awcl_jax.runtime.files import atomic_write

_ANCHORS, _POSITIVES = 6, 3  # in the picture
_COUNTED = 50  # batches, for the means


def preview(
    train: Split,
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"],
    plan: BatchPlan,
    augmentation: Augmentation,
    *,
    seed: int,
    steps: int,
    out: Path,
) -> str:
    """Draw anchors of the first batch with their views and positives of other scans, and describe the batches.

    Args:
      train: the training frames.
      labels: of the loss, of each of these.
      plan: of the batches.
      augmentation: of the views.
      seed: of the run.
      steps: of the run.
      out: the PNG to write.

    Returns:
      The description, in a few lines.
    """
    frames = plan.frames(0)
    anchors = _anchors(plan.classes[frames])
    others = [_positives(row, frames, labels, train.index) for row in anchors.tolist()]
    _draw(train, plan, augmentation, seed, frames, anchors, others, out)
    return "\n".join(_describe(train.index, labels, plan, frames, steps=steps))


def _anchors(classes: Int[np.ndarray, " b"]) -> Int[np.ndarray, " m"]:
    """Return rows of the batch: one of each class in turn, unlabelled ones last."""
    labelled = np.flatnonzero(classes != UNLABELLED)
    _, first = np.unique(classes[labelled], return_index=True)
    rest = np.setdiff1d(labelled, labelled[first])
    return np.concatenate([np.sort(labelled[first]), np.flatnonzero(classes == UNLABELLED)[:1], rest])[:_ANCHORS]


def _positives(
    row: int, frames: Int[np.ndarray, " b"], labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"], index: ScanIndex
) -> list[int]:
    """Return frames of the batch that the anchor is pulled towards: those of other scans, and of more labels, first."""
    in_batch = labels[frames].reshape(frames.size, -1)
    shared = ((in_batch == in_batch[row]) & (in_batch != UNLABELLED)).sum(axis=1)
    others = [other for other in np.flatnonzero(shared).tolist() if other != row]
    others.sort(key=lambda other: (index.scans[frames[other]] == index.scans[frames[row]], -shared[other]))
    return frames[others[:_POSITIVES]].tolist()


def _draw(
    train: Split,
    plan: BatchPlan,
    augmentation: Augmentation,
    seed: int,
    frames: Int[np.ndarray, " b"],
    anchors: Int[np.ndarray, " m"],
    others: list[list[int]],
    out: Path,
) -> None:
    shown = frames[anchors]
    images = train.reader.read(shown)
    fans = train.reader.fans(shown) if augmentation.beams == "fan" else None
    if plan.pairs == "cross_scan":
        partners = plan.partners(0, frames)[anchors]
        pairs = np.stack([images, train.reader.read(partners)], axis=1)
        fans = None if fans is None else np.stack([fans, train.reader.fans(partners)], axis=1)
    else:
        partners, pairs = shown, images
    # As the encoder gets them in the first step.
    address = {"rows": anchors.astype(np.int32), "step": 0, "seed": seed}
    views = jax.device_get(two_views(pairs, **address, options=augmentation, fans=fans))
    with atomic_write(out) as part:
        drawing.montage_anchors(
            images,
            np.swapaxes(views, 0, 1)[..., 0],
            [train.reader.read(np.array(found)) if found else images[:0] for found in others],
            [caption(train.index, frame) for frame in shown.tolist()],
            ["" if a == b else caption(train.index, b) for a, b in zip(shown.tolist(), partners.tolist(), strict=True)],
            [[caption(train.index, frame) for frame in found] for found in others],
            part,
        )


def _describe(
    index: ScanIndex,
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"],
    plan: BatchPlan,
    frames: Int[np.ndarray, " b"],
    *,
    steps: int,
) -> list[str]:
    counted = collections.Counter(shown_on(index, frame) for frame in frames.tolist())
    by_count = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{name} {count}" for name, count in by_count)
    batches = [plan.frames(step) for step in range(min(steps, _COUNTED))]
    partners = [plan.partners(step, batch) for step, batch in enumerate(batches)]
    made = [
        composition(labels[batch], np.stack([index.scans[batch], index.scans[other]], axis=1))
        for batch, other in zip(batches, partners, strict=True)
    ]
    mean = {name: float(np.mean([one[name] for one in made])) for name in made[0]}
    none = (labels.reshape(len(labels), -1) == UNLABELLED).all(axis=1)
    unlabelled = np.mean([none[batch].mean() for batch in batches])
    patients = np.mean([np.unique(index.patients[batch]).size for batch in batches])
    positives = f"{mean['positives']:.1f} positives of an anchor, its own other view among them"
    return [
        f"First batch of {plan.batch_size} frames, by what they show: {listed}",
        f"Mean of the first {len(batches)} batches of {steps}:",
        f"  {patients:.1f} patients, {mean['anatomies']:.1f} groups of frames that attract each other",
        f"  {positives}; {mean['cross_scan']:.0%} of all positives are of another scan",
        f"  {mean['own_view_only']:.0%} of the anchors have only their own other view as a positive",
        f"  {unlabelled:.0%} of the frames have no label in the loss",
    ]
