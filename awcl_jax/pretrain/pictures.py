"""The pictures of a pretraining run: curves, the contrasted pairs and views, and a map of the embeddings."""

from pathlib import Path

import jax
import numpy as np

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import two_views
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.data.scans import ScanIndex
from awcl_jax.data.selection import Split, Splits
from awcl_jax.evaluate.frozen import Features
from awcl_jax.report import drawing
from awcl_jax.report.embedding_map import FrameMap, draw_frames, flat_map
from awcl_jax.train.metrics import METRICS_FILE

_PAIRS, _VIEWED = 12, 6


def write_pictures(
    workdir: Path,
    *,
    selection: Splits,
    plan: BatchPlan,
    augmentation: Augmentation,
    seed: int,
    before: Features,
    after: Features,
    map_frames: int,
) -> FrameMap:
    """Write `loss.png`, `pairs.png`, `views.png` and `embeddings.png` into the run's folder.

    Args:
      workdir: folder of the run.
      selection: its data.
      plan: its batches.
      augmentation: of its views.
      seed: of its views.
      before: features by the untrained encoder.
      after: features by the trained one.
      map_frames: test frames in the map of embeddings.

    Returns:
      The map by the trained encoder, which also holds frames of the other splits.
    """
    drawing.plot_loss(workdir / METRICS_FILE, workdir / "loss.png")
    _pairs(selection.train, plan, workdir / "pairs.png")
    _views(selection.train, plan, augmentation, seed, workdir / "views.png")
    return _map(selection, before, after, map_frames, seed, workdir / "embeddings.png")


def _pairs(train: Split, plan: BatchPlan, out: Path) -> None:
    """Draw positive pairs of the first batch: of two scans first, then the two views of one frame.

    Where no two of its frames attract each other, the two views of each frame are its only pair.
    """
    rows, partners = plan.frames(0), plan.partners(0)
    scans = train.index.scans
    pairs: list[tuple[int, int]] = []
    waiting: dict[int, int] = {}
    for frame, partner in zip(rows.tolist(), partners.tolist(), strict=True):
        label = int(plan.classes[frame])
        if partner != frame or label == UNLABELLED:
            pairs.append((frame, partner))
        elif label in waiting:
            pairs.append((waiting.pop(label), frame))
        else:
            waiting[label] = frame
    pairs = pairs or [(frame, frame) for frame in rows.tolist()]
    pairs.sort(key=lambda pair: scans[pair[0]] == scans[pair[1]])
    shown = np.array(pairs[:_PAIRS])
    images = np.stack([train.reader.read(shown[:, side]) for side in (0, 1)], axis=1)
    captions = [(caption(train.index, left), caption(train.index, right)) for left, right in shown.tolist()]
    drawing.montage_pairs(images, captions, out, cross_scan=scans[shown[:, 0]] != scans[shown[:, 1]])


def _views(train: Split, plan: BatchPlan, augmentation: Augmentation, seed: int, out: Path) -> None:
    """Draw frames of the first batch beside augmented views; the encoder saw the first two of each."""
    frames = plan.frames(0)[:_VIEWED]
    images, rows = train.reader.read(frames), np.arange(frames.size)
    fans = train.reader.fans(frames) if augmentation.beams == "fan" else None
    views = [two_views(images, rows=rows, step=step, seed=seed, options=augmentation, fans=fans) for step in range(3)]
    shown = np.swapaxes(np.concatenate(jax.device_get(views)), 0, 1)[..., 0]
    drawing.montage_views(images, shown, [caption(train.index, frame) for frame in frames.tolist()], out)


def _map(selection: Splits, before: Features, after: Features, count: int, seed: int, out: Path) -> FrameMap:
    drawn = draw_frames(selection, count, seed=seed)
    trained = FrameMap.of(drawn, after, seed=seed)
    test, frames = drawn["test"]
    drawing.embedding_map(
        {"untrained": flat_map(before(test.reader, frames), seed=seed), "trained": trained.places[: len(frames)]},
        test.index.fine[frames],
        test.index.fine_names,
        test.index.scans[frames],
        out,
        seed=seed,
    )
    return trained


def caption(index: ScanIndex, frame: int) -> str:
    """Return a frame's scan, and what it shows."""
    return f"{index.scan_names[index.scans[frame]]} {shown_on(index, frame)}"


def shown_on(index: ScanIndex, frame: int) -> str:
    """Return the most exact label of a frame."""
    fine, coarse = int(index.fine[frame]), int(index.coarse[frame])
    if fine != UNLABELLED:
        return index.fine_names[fine]
    return index.coarse_names[coarse] if coarse != UNLABELLED else "unlabelled"
