"""Pictures to judge a run by.

Every function takes plain arrays and writes one PNG, so that each can be called from a notebook.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.report import curves
from awcl_jax.report.embedding_map import LEAST_FOR_TSNE
from awcl_jax.runtime import figures

# Okabe & Ito 2008, distinguishable with every kind of colour blindness; beyond seven the marker changes too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "^", "s", "D")
_TITLE = 42  # letters of a title that fit over a panel
_GREY = "#999999"
_ONE_SCAN, _TWO_SCANS = "#0072B2", "#E69F00"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.parse_math": False,  # names of anatomies and scans may have a $
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.titlesize": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "savefig.dpi": 120,
}


def plot_loss(metrics_path: Path, out: Path) -> None:
    """Plot every number of a run over its steps, one small panel each: the loss, then the monitors and evaluators.

    Names with the same text before their last slash (`knn/accuracy`, `knn/macro_f1`) share a panel. The loss of an
    encoder that maps everything to one point (`metrics.collapsed_loss`) is a dashed line beside the loss.

    Args:
      metrics_path: the run's `metrics.jsonl`.
      out: the PNG to write.

    Raises:
      InputError: the file does not exist or has no numbers yet.
    """
    series = curves.read_series(metrics_path)
    collapsed = series.pop("collapsed_loss", None)
    panels = curves.panels(series)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * columns, 2.9 * rows), layout="constrained")
        _heading(figure, "Training run")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, (panel, names) in zip(axes, panels.items(), strict=False):
            _draw_series(ax, {name: series[name] for name in names})
            ax.set_title(textwrap.fill(curves.title_of(panel), _TITLE))
            if panel == "loss" and collapsed is not None:
                ax.set_title("Contrastive loss")
                ax.plot(*collapsed.T, color=COLOURS[3], linestyle="--", label="collapsed encoder")
                ax.legend()
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        figures.save(figure, out, format="png")


def _draw_series(ax: Axes, series: Mapping[str, Float[np.ndarray, "points 2"]]) -> None:
    smoothed = 0
    for i, (name, points) in enumerate(series.items()):
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i // len(COLOURS) % len(_MARKERS)]
        label = curves.label_of(name)
        steps, values = points[np.isfinite(points[:, 1])].T
        if not len(values):
            ax.text(0.5, 0.5, f"{label}: never finite", ha="center", transform=ax.transAxes)
        elif len(values) <= 60:
            ax.plot(steps, values, color=colour, marker=marker, markersize=3.5, label=label)
        elif np.abs(np.diff(values)).mean() <= 0.02 * np.ptp(values):
            # A moving mean helps with noise; it would only blur a schedule.
            ax.plot(steps, values, color=colour, linewidth=1.8, label=label)
        else:
            width = smoothed = len(values) // 30
            smooth = np.convolve(values, np.full(width, 1 / width), mode="valid")
            ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            middle = steps[(width - 1) // 2 :][: len(smooth)]
            ax.plot(middle, smooth, color=colour, linewidth=1.8, label=label)
    if len(series) > 3:
        # Below the axes: beside them, it would take the width from every panel of its column.
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    elif len(series) > 1:
        ax.legend(fontsize=8)
    ax.set_xlabel("step" + (f" (bold: mean of {smoothed} values)" if smoothed > 1 else ""))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def montage_pairs(
    images: UInt8[np.ndarray, "m 2 h w"],
    captions: Sequence[tuple[str, str]],
    out: Path,
    *,
    cross_scan: Bool[np.ndarray, " m"],
) -> None:
    """Draw positive pairs side by side, to check that both show the same anatomy, and from which scans they are.

    Args:
      images: the two frames of each pair.
      captions: texts above the left and the right frame, such as their scan and anatomy.
      out: the PNG to write.
      cross_scan: whether the two frames of a pair are of different scans; these have a dashed frame in another colour.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    m, _, h, w = images.shape
    gap = np.full((m, h, max(2, w // 40)), 255, np.uint8)
    joined = np.concatenate([images[:, 0], gap, images[:, 1]], axis=2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * columns, (3.9 * h / (2 * w) + 0.45) * rows + 0.9), layout="constrained")
        _heading(figure, f"Positive pairs: {np.count_nonzero(cross_scan)} of {m} across two scans")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax, pair, (left, right), cross in zip(axes, joined, captions, cross_scan, strict=False):
            ax.imshow(pair, cmap="gray", vmin=0, vmax=255)
            _caption(ax, left, x=w / 2)
            _caption(ax, right, x=joined.shape[2] - w / 2)
            _frame(ax, colour=_TWO_SCANS if cross else _ONE_SCAN, linestyle="--" if cross else "-")
        for ax in axes[m:]:
            ax.set_visible(False)
        one = Patch(fill=False, edgecolor=_ONE_SCAN, linewidth=2.5, label="both frames from one scan")
        two = Patch(fill=False, edgecolor=_TWO_SCANS, linewidth=2.5, linestyle="--", label="frames from two scans")
        figure.legend(handles=[one, two], loc="outside lower center", ncols=2)
        figures.save(figure, out, format="png")


def montage_views(
    frames: UInt8[np.ndarray, "m h w"],
    views: UInt8[np.ndarray, "m v y x"] | Float[np.ndarray, "m v y x"],
    captions: Sequence[str],
    out: Path,
) -> None:
    """Draw each frame beside its augmented views, to check that the anatomy is still visible.

    Args:
      frames: frames as read by the pipeline.
      views: their views. Floats (after normalisation) are shown with black at the lowest and white at the highest value
        of all views, so that differences in brightness remain.
      captions: a line for each frame, such as its scan and anatomy.
      out: the PNG to write.
    """
    m, v = views.shape[:2]
    low, high = (0, 255) if views.dtype == np.uint8 else (float(views.min()), float(views.max()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(2.4 * (1 + v), 2.4 * m * frames.shape[1] / frames.shape[2] + 0.8), layout="constrained"
        )
        _heading(figure, "Frames and their augmented views")
        axes = figure.subplots(m, 1 + v, squeeze=False)
        for i, row in enumerate(axes):
            row[0].imshow(frames[i], cmap="gray", vmin=0, vmax=255)
            row[0].set_ylabel("\n".join(textwrap.wrap(captions[i], 26, break_on_hyphens=False)), fontsize=9)
            _frame(row[0], colour=COLOURS[6], linestyle="-")
            for ax, view in zip(row[1:], views[i], strict=True):
                ax.imshow(view, cmap="gray", vmin=low, vmax=high)
                _frame(ax, colour="#FFFFFF", linestyle="-")
        for ax, title in zip(axes[0], ["frame", *(f"view {j + 1}" for j in range(v))], strict=True):
            ax.set_title(title)
        figures.save(figure, out, format="png")


def montage_anchors(
    frames: UInt8[np.ndarray, "m h w"],
    views: Float[np.ndarray, "m 2 y x"],
    positives: Sequence[UInt8[np.ndarray, "_ h w"]],
    captions: Sequence[str],
    partners: Sequence[str],
    positive_captions: Sequence[Sequence[str]],
    out: Path,
) -> None:
    """Draw anchors of a batch beside their two views and other frames that they are pulled towards.

    Args:
      frames: the anchors.
      views: their two views, shown with black at the lowest and white at the highest value of all views.
      positives: for each anchor other frames of the batch with its label; some may have fewer than others, or none.
      captions: a line for each anchor, such as its scan and anatomy.
      partners: likewise for the frame of the second view, "" if that is the anchor.
      positive_captions: likewise for the positives.
      out: the PNG to write.
    """
    columns = 3 + max(1, *(len(images) for images in positives))
    low, high = float(views.min()), float(views.max())
    with matplotlib.rc_context(STYLE):
        height = 2.3 * frames.shape[1] / frames.shape[2] + 0.45
        figure = Figure(figsize=(2.3 * columns, height * len(frames) + 0.6), layout="constrained")
        _heading(figure, "Anchors of the first batch (blue border), their two views, and other positives")
        for i, row in enumerate(figure.subplots(len(frames), columns, squeeze=False)):
            second = f"view 2, of {partners[i]}" if partners[i] else "view 2"
            texts = [captions[i], "view 1", second, *positive_captions[i]]
            shown = [(frames[i], 0, 255), *((view, low, high) for view in views[i])]
            shown += [(image, 0, 255) for image in positives[i]]
            _draw_row(row, shown, texts)
            if not len(positives[i]):
                row[3].set_visible(True)
                row[3].axis("off")
                row[3].text(0.5, 0.5, "no other positive\nin this batch", ha="center", va="center", fontsize=8)
        figures.save(figure, out, format="png")


def montage_neighbours(
    queries: UInt8[np.ndarray, "m h w"],
    neighbours: Sequence[UInt8[np.ndarray, "_ h w"]],
    captions: Sequence[str],
    neighbour_captions: Sequence[Sequence[str]],
    out: Path,
    *,
    whence: str = "from other scans",
) -> None:
    """Draw frames beside those that an encoder finds most similar, to see what it relies on.

    Args:
      queries: the frames.
      neighbours: for each, its neighbours, the nearest first; some may have fewer than others.
      captions: a line for each query, such as its scan and anatomy.
      neighbour_captions: likewise for the neighbours.
      out: the PNG to write.
      whence: which frames the neighbours were chosen from, for the title; may be empty.
    """
    columns = 1 + max(len(images) for images in neighbours)
    height = 2.1 * queries.shape[1] / queries.shape[2] + 0.45
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.1 * columns, height * len(queries) + 0.6), layout="constrained")
        _heading(figure, f"Frames (blue border) and their nearest neighbours {whence}".rstrip())
        for i, row in enumerate(figure.subplots(len(queries), columns, squeeze=False)):
            shown = [(image, 0, 255) for image in (queries[i], *neighbours[i])]
            _draw_row(row, shown, [captions[i], *neighbour_captions[i]])
        figures.save(figure, out, format="png")


def _draw_row(row: np.ndarray, shown: Sequence[tuple[np.ndarray, float, float]], texts: Sequence[str]) -> None:
    """Draw pictures (values, black, white) under their texts, the first with a blue border; hide the axes left over."""
    for ax, (image, black, white), text in zip(row, shown, texts, strict=False):
        ax.imshow(image, cmap="gray", vmin=black, vmax=white)
        # A title, unlike a caption, does not make the picture narrower.
        lines = textwrap.wrap(text, 28, break_on_hyphens=False)
        ax.set_title("\n".join(lines), fontsize=8, fontweight="normal")
        _frame(ax, colour="#FFFFFF", linestyle="-")
    _frame(row[0], colour=COLOURS[0], linestyle="-")
    for ax in row[len(shown) :]:
        ax.set_visible(False)


def _heading(figure: Figure, text: str) -> None:
    # A figure of few columns is narrower than its heading.
    figure.suptitle(text, wrap=True)


def _caption(ax: Axes, text: str, *, x: float) -> None:
    # Half of a pair's width, or the caption of its left frame would cover that of its right one.
    lines = "\n".join(textwrap.wrap(text, 22, break_on_hyphens=False))
    ax.annotate(lines, (x, 0), (0, 4), textcoords="offset points", ha="center", va="bottom", fontsize=9)


def _frame(ax: Axes, *, colour: str, linestyle: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set(visible=True, color=colour, linewidth=2.5, linestyle=linestyle)


def embedding_map(
    maps: Mapping[str, Float[np.ndarray, "n 2"]],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
    scans: Int[np.ndarray, " n"],
    out: Path,
    *,
    seed: int = 0,
) -> None:
    """Draw flat maps of features, coloured by anatomy on the left and by scan on the right.

    A good encoder gathers the anatomies and mixes the scans.

    Args:
      maps: title -> places of the frames by `awcl_jax.report.embedding_map.flat_map`, a row of the picture each.
      labels: anatomy of each frame, UNLABELLED where there is none.
      names: the anatomies.
      scans: the scan of each frame.
      out: the PNG to write.
      seed: of the scans' colours.
    """
    n_scans = len(np.unique(scans))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(12, 5.2 * len(maps) + 1.3), layout="constrained")
        _heading(figure, f"Map of {len(labels):,} frames' features" + " (t-SNE)" * (len(labels) >= LEAST_FOR_TSNE))
        axes = figure.subplots(len(maps), 2, squeeze=False)
        for (by_anatomy, by_scan), (title, places) in zip(axes, maps.items(), strict=True):
            _scatter_anatomy(by_anatomy, places, labels, names)
            by_anatomy.set_title(f"{title}, by anatomy")
            _scatter_scans(by_scan, places, scans, seed)
            by_scan.set_title(f"{title}, by scan ({n_scans} scans)")
        handles, texts = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=min(7, len(texts)), markerscale=2)
        figures.save(figure, out, format="png")


def _scatter_anatomy(
    ax: Axes, map_points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"], names: Sequence[str]
) -> None:
    _frame(ax, colour="#CCCCCC", linestyle="-")
    for label in np.unique(labels):
        x, y = map_points[labels == label].T
        if label == UNLABELLED:
            ax.scatter(x, y, s=8, linewidths=0, alpha=0.85, color=_GREY, label="unlabelled")
            continue
        colour, marker = COLOURS[label % len(COLOURS)], _MARKERS[label // len(COLOURS) % len(_MARKERS)]
        ax.scatter(x, y, s=14, linewidths=0, alpha=0.85, color=colour, marker=marker, label=names[label])


def _scatter_scans(ax: Axes, map_points: Float[np.ndarray, "n 2"], scans: Int[np.ndarray, " n"], seed: int) -> None:
    # Shuffled, because neighbouring scan numbers would otherwise have similar colours.
    unique, scan = np.unique(scans, return_inverse=True)
    colour = np.random.default_rng([seed, 0x5CA]).permutation(len(unique))[scan] / max(1, len(unique) - 1)
    _frame(ax, colour="#CCCCCC", linestyle="-")
    x, y = map_points.T
    ax.scatter(x, y, c=colour, cmap="turbo", s=14, linewidths=0, alpha=0.85)


def confusion_picture(
    labels: Int[np.ndarray, " n"], predictions: Int[np.ndarray, " n"], names: Sequence[str], out: Path
) -> None:
    """Draw the confusion matrix: counts of frames, shaded by their share of the true anatomy.

    Anatomies that are neither true nor predicted anywhere are left out.

    Args:
      labels: true anatomy of each frame.
      predictions: predicted anatomy of each frame.
      names: the anatomies.
      out: the PNG to write.
    """
    from sklearn.metrics import confusion_matrix

    present = np.union1d(labels, predictions)
    counts = confusion_matrix(labels, predictions, labels=present)
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]
    k = len(present)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(0.75 * k + 3.2, 0.62 * k + 2.4), layout="constrained")
        ax = figure.subplots()
        shades = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), count in np.ndenumerate(counts):
            ax.text(j, i, f"{count:,}", ha="center", va="center", color=_ink(int(count), share[i, j]))
        ax.set_xticks(range(k), [names[c] for c in present], rotation=40, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(k), [f"{names[c]} ({total:,})" for c, total in zip(present, totals, strict=True)])
        ax.set(xlabel="predicted anatomy", ylabel="true anatomy (frames)")
        ax.set_title(f"Confusion: {np.trace(counts):,} of {len(labels):,} frames right")
        figure.colorbar(shades, label="share of the true anatomy's frames")
        figures.save(figure, out, format="png")


def _ink(count: int, share: float) -> str:
    # Zeros are pale, so that the confusions stand out.
    return "#B0B0B0" if not count else "white" if share > 0.55 else "#222222"
