"""The pictures of a segmentation: outlines over frames, and agreement of measurements."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from awcl_jax.report.drawing import COLOURS, STYLE
from awcl_jax.runtime import figures

_A_ROW = 4


def overlays(
    read: Callable[[Int[np.ndarray, " m"]], UInt8[np.ndarray, "m h w"]],
    masks: UInt8[np.ndarray, "n h w"],
    predictions: UInt8[np.ndarray, "n h w"],
    dice: Mapping[int, float],
    patients: Int[np.ndarray, " n"],
    names: Sequence[str],
    out: Path,
) -> None:
    """Draw the worst frames in a first row and those near the median in a second, each of a different patient.

    The reference is solid, the prediction dashed.

    Args:
      read: frames by number -> pictures.
      masks: of the reference.
      predictions: a class id for each pixel.
      dice: frame -> its mean Dice, for frames that show a structure.
      patients: patient of each frame.
      names: of the classes, the background first.
      out: the PNG to write.
    """
    ranked = sorted(dice, key=lambda frame: (dice[frame], frame))
    rank = {frame: i for i, frame in enumerate(ranked)}
    central = sorted(ranked, key=lambda frame: abs(rank[frame] - (len(ranked) - 1) / 2))
    rows = {
        "worst": _of_several_patients(ranked, patients),
        "median": sorted(_of_several_patients(central, patients), key=lambda frame: rank[frame]),
    }
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(3.1 * _A_ROW, 3.4 * len(rows) + 0.8), layout="constrained")
        figure.suptitle(f"Segmentation of {len(dice):,} test frames")
        axes = figure.subplots(len(rows), _A_ROW, squeeze=False)
        for row, (title, frames) in zip(axes, rows.items(), strict=True):
            for ax in row[len(frames) :]:
                ax.set_visible(False)
            for ax, frame, image in zip(row, frames, read(np.array(frames)), strict=False):
                ax.imshow(image, cmap="gray", vmin=0, vmax=255)
                ax.set(xticks=[], yticks=[], title=f"{title}: Dice {dice[frame]:.2f}")
                _outlines(ax, masks[frame], len(names), linestyle="-")
                _outlines(ax, predictions[frame], len(names), linestyle="--")
        structures = [Line2D([], [], color=_colour(c), label=names[c]) for c in range(1, len(names))]
        kinds = [
            Line2D([], [], color="#777777", linestyle="-", label="reference"),
            Line2D([], [], color="#777777", linestyle="--", label="prediction"),
        ]
        figure.legend(handles=[*structures, *kinds], loc="outside lower center", ncols=min(6, len(names) + 1))
        figures.save(figure, out, format="png")


def _of_several_patients(frames: Sequence[int], patients: Int[np.ndarray, " n"]) -> list[int]:
    """Return the first of these frames of each patient, as many as fit in a row."""
    first: dict[int, int] = {}
    for frame in frames:
        first.setdefault(int(patients[frame]), frame)
    return list(first.values())[:_A_ROW]


def _outlines(ax: Axes, mask: UInt8[np.ndarray, "h w"], classes: int, *, linestyle: str) -> None:
    for c in range(1, classes):
        if (mask == c).any():
            # A border of 0, so that a structure at the picture's edge is outlined, too.
            at = np.arange(-1, mask.shape[0] + 1), np.arange(-1, mask.shape[1] + 1)
            ax.contour(at[1], at[0], np.pad(mask == c, 1), [0.5], colors=_colour(c), linestyles=linestyle)
    ax.set(xlim=(-1, mask.shape[1]), ylim=(mask.shape[0], -1))


def _colour(c: int) -> str:
    # Starts at the second colour: the first, blue, is hard to see on a dark frame.
    return COLOURS[c % len(COLOURS)]


def bland_altman(measured: Float[np.ndarray, " n"], reference: Float[np.ndarray, " n"], out: Path) -> None:
    """Plot differences over means, with bias and limits of agreement (Bland & Altman 1986).

    Args:
      measured: in millimetres; frames where either is NaN are left out.
      reference: likewise.
      out: the PNG to write.
    """
    difference, mean = measured - reference, (measured + reference) / 2
    kept = ~np.isnan(difference)
    difference, mean = difference[kept], mean[kept]
    bias, reach = difference.mean(), 1.96 * difference.std(ddof=1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        ax = figure.subplots()
        ax.scatter(mean, difference, s=16, linewidths=0, alpha=0.8, color=COLOURS[0])
        for value, label, style in (
            (bias, "bias", "-"),
            (bias - reach, "lower limit", "--"),
            (bias + reach, "upper limit", "--"),
        ):
            ax.axhline(value, color=COLOURS[3], linestyle=style, label=f"{label} {value:.1f} mm")
        ax.set(xlabel="mean of measurement and reference (mm)", ylabel="measurement - reference (mm)")
        ax.set_title(f"Head circumference of {len(mean):,} test frames")
        ax.legend()
        figures.save(figure, out, format="png")
