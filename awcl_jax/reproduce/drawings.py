"""Curves of a study, for people to look at."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from awcl_jax.reproduce.finished import PROBES, Finished, bound_of
from awcl_jax.reproduce.study import ratio_methods
from awcl_jax.runtime import figures


def draw(finished: Finished, out: Path) -> None:
    """Write `learning_curves.png` and `anatomy_ratio.png` to a folder, each if there is a curve."""
    _draw_learning(finished, out / "learning_curves.png")
    if finished.study.ratios:
        _draw_ratios(finished, out / "anatomy_ratio.png")


def _draw_learning(finished: Finished, out: Path) -> None:
    """Draw the score on validation patients over the steps: the mean over the seeds, and a band from worst to best."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for method in finished.study.methods:
        curves = list(finished.learning_curves(method).values())
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if len(steps) > 1:
            values = np.array([[curve[step] for step in steps] for curve in curves])
            (line,) = ax.plot(steps, values.mean(axis=0), marker=".", label=method.title)
            ax.fill_between(steps, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
    if not ax.has_data():
        return
    seeds = len(finished.study.seeds)
    band = f"; mean of {seeds} seeds, band from worst to best" if seeds > 1 else ""
    ax.set(xlabel="step", ylabel="kNN macro-F1 on validation patients", title=f"Pretraining{band}")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figures.save(figure, out, dpi=120)


def _draw_ratios(finished: Finished, out: Path) -> None:
    """Draw scores over the anatomy ratio, with 95% intervals over patients; both are means over the seeds."""
    methods = [method for _, method in ratio_methods(finished.study)]
    curves = {title: [finished.probes(method, score) for method in methods] for score, title in PROBES.items()}
    for task in finished.study.tasks:
        score, title = task.compared
        curves[f"{task.title}: {title}"] = [finished.scores(task, method, score) for method in methods]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for title, of_ratios in curves.items():
        points = [
            (ratio, *(np.mean([bound_of(score, part) for score in scores]) for part in ("value", "low", "high")))
            for (ratio, _), scores in zip(ratio_methods(finished.study), of_ratios, strict=True)
            if scores
        ]
        if points:
            ratios, means, lows, highs = np.array(points).T
            ax.errorbar(ratios, means, (means - lows, highs - means), marker="o", capsize=3, label=title)
    ax.set(xlabel="anatomy ratio", ylabel="score on test patients", title="More labels in pretraining")
    ax.grid(alpha=0.3)
    if ax.has_data():
        ax.legend(fontsize="small")
    figures.save(figure, out, dpi=120)
