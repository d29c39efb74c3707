"""Sheets of small pictures that show what is in a dataset and what was removed from its frames."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from matplotlib.figure import Figure

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.reader import FrameReader
from awcl_jax.data.scans import ScanIndex
from awcl_jax.runtime import figures

_ROWS, _COLUMNS, _SIZE = 12, 8, 160


def write_contact_sheet(index: ScanIndex, out: Path, *, seed: int = 0) -> None:
    """Write a PNG with a row for each anatomy, with frames from as many scans as possible.

    Args:
      index: the frames. Of more than twelve anatomies, those with the most frames are shown; a single one gets more
        rows.
      out: the file.
      seed: of the choice of frames.
    """
    groups = sorted(_anatomies(index), key=lambda group: -group[1].sum())[:_ROWS]
    rows = [(name, _draw(index, frames, _COLUMNS, seed)) for name, frames in groups]
    if len(groups) == 1:
        name, frames = groups[0]
        drawn = _draw(index, frames, _COLUMNS * _ROWS // 2, seed)
        rows = [(name, drawn[start : start + _COLUMNS]) for start in range(0, len(drawn), _COLUMNS)]
    reader = FrameReader(index, size=_SIZE, cache_mb=0)
    figure = Figure(figsize=(1.3 * _COLUMNS, 1.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for (name, frames), line in zip(rows, axes, strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, image in zip(line, reader.read(frames), strict=False):
            ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        line[0].set_title(name, loc="left", fontsize=8, parse_math=False)
    figures.save(figure, out, dpi=120)


def write_removed_sheet(examples: UInt8[np.ndarray, "n h w 3"], out: Path, *, seed: int = 0) -> None:
    """Write a PNG of what was removed from frames.

    Args:
      examples: one picture or more, drawn by `show_removed`.
      out: the file.
      seed: of the choice, if there are more than fit.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(examples))[: _ROWS * _COLUMNS])
    rows = -(-len(drawn) // _COLUMNS)
    figure = Figure(figsize=(1.3 * _COLUMNS, 1.4 * rows + 0.4), layout="constrained")
    figure.suptitle("Red was removed, in blocks too coarse to read; grey was kept.", fontsize=9)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, image in zip(axes.flat, examples[drawn], strict=False):
        ax.imshow(image)
    figures.save(figure, out, dpi=120)


def _anatomies(index: ScanIndex) -> Iterator[tuple[str, Bool[np.ndarray, " n"]]]:
    for fine, coarse in np.unique(np.stack([index.fine, index.coarse]), axis=1).T.tolist():
        name = "no anatomy"
        if fine != UNLABELLED:
            name = index.fine_names[fine]
        elif coarse != UNLABELLED:
            name = index.coarse_names[coarse]
        yield name, (index.fine == fine) & (index.coarse == coarse)


def _draw(index: ScanIndex, frames: Bool[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " m"]:
    """Draw some of these frames, one of each scan before a second of any."""
    drawn = np.random.default_rng(seed).permutation(np.flatnonzero(frames))
    rank = np.zeros(len(drawn), np.int64)
    times: dict[int, int] = {}
    for place, scan in enumerate(index.scans[drawn].tolist()):
        rank[place] = times[scan] = times.get(scan, -1) + 1
    return drawn[np.argsort(rank, kind="stable")][:count]
