"""Tables and figures of a study, from the results of its runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from awcl_jax.evaluate.scores import Score
from awcl_jax.report.comparison import frame_differences
from awcl_jax.reproduce.study import PRETRAIN, Method, Study, Task, all_methods, ratio_method
from awcl_jax.runtime import figures
from awcl_jax.runtime.files import write_whole
from awcl_jax.train import run_folder

TABLES_FILE = "tables.md"
_PICTURES = ("embeddings.png", "confusion.png", "overlays.png")
_PROBES = {"knn/macro_f1": "kNN macro-F1", "probe/macro_f1": "linear probe macro-F1"}


@dataclasses.dataclass(frozen=True)
class Finished:
    """The finished runs of a study.

    Attributes:
      study: the study.
      out: its folder.
    """

    study: Study
    out: Path

    def scores(self, task: Task, method: Method, score: str) -> list[dict[str, float]]:
        """Return a test score of every finished seed: `value`, and its interval, `low` to `high`."""
        folders = (self.study.task_folder(self.out, task, method, seed) for seed in self.study.seeds)
        results = (_results(folder) for folder in folders if folder is not None)
        return [found["test"][score] for found in results if found and score in found["test"]]

    def probes(self, method: Method, score: str) -> list[dict[str, float]]:
        """Return a score of the frozen features of every finished seed, as reported by pretraining.

        For a method without pretraining: of the starting point of another method.
        """
        column, source = "trained", method
        if method.config is None:
            column = "untrained"
            starts = (
                other
                for other in self.study.methods
                if other.config
                and other.encoder == method.encoder
                and other.fields.get("model.init", "random") == method.init
            )
            found = next(starts, None)
            if found is None:
                return []
            source = found
        results = (_results(self.pretraining(source, seed)) for seed in self.study.seeds)
        return [result[column][score] for result in results if result]

    def pretraining(self, method: Method, seed: int) -> Path:
        """Return the folder of a pretraining run."""
        return self.out / PRETRAIN / f"{method.name}-{seed}"

    def difference(self, task: Task, method: Method, other: Method) -> Score | None:
        """Return the gain of `method` in the task's first score, paired by frame, with the frames of all seeds."""
        rows, others = [], []
        for seed in self.study.seeds:
            folders = [self.study.task_folder(self.out, task, m, seed) for m in (method, other)]
            files = [folder / run_folder.FRAMES_FILE for folder in folders if folder and _results(folder)]
            if len(files) == 2:
                rows += run_folder.read_frames(files[0])
                others += run_folder.read_frames(files[1])
        if not rows:
            return None
        scores = frame_differences(rows, others)
        return next(score for score in scores if score.name in ("macro_f1", "mean"))


def write(study: Study, out: Path) -> None:
    """Write `tables.md`, `tables.json` and, if there is a curve, `anatomy_ratio.png` to the study's folder."""
    finished = Finished(study, out)
    tables = [_transfer(finished)]
    for task in study.tasks:
        tables += [_task(finished, task), _differences(finished, task)]
    if study.ratios:
        tables.append(_ratio_table(finished))
        _draw_ratios(finished, out / "anatomy_ratio.png")
    if study.variations:
        tables.append(_variation_table(finished))
    if study.learning_rates:
        tables.append(_learning_rate_table(finished))
    text = "\n\n".join([*(table.markdown() for table in tables), _gallery(finished)])
    write_whole(out / TABLES_FILE, text.rstrip() + "\n")
    run_folder.write_json(out / "tables.json", {table.title: table.rows for table in tables})


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: its title, and rows of cells by column, all with the same columns."""

    title: str
    rows: Sequence[Mapping[str, str]]
    remark: str = ""

    def markdown(self) -> str:
        """Return the table as Markdown."""
        columns = list(self.rows[0]) if self.rows else []
        lines = [f"### {self.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row.values()) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.remark] if self.remark else [])])


def _transfer(finished: Finished) -> Table:
    """Compare methods by the first score of each task."""
    rows = []
    for method in finished.study.methods:
        row = {"encoder": method.title}
        row |= {title: _cell(finished.probes(method, score)) for score, title in _PROBES.items()}
        for task in finished.study.tasks:
            score, title = next(iter(task.scores.items()))
            row[f"{task.title}: {title}"] = _cell(finished.scores(task, method, score))
        rows.append(row)
    remark = _spread(finished.study)
    for method in finished.study.methods:
        if method.encoder:
            remark += f" {method.title}: {', '.join(f'{name}={value}' for name, value in method.encoder.items())}."
    return Table("Transfer", rows, remark)


def _task(finished: Finished, task: Task) -> Table:
    """Return all scores of a task."""
    rows = [
        {"encoder": method.title}
        | {title: _cell(finished.scores(task, method, score)) for score, title in task.scores.items()}
        for method in finished.study.methods
    ]
    return Table(task.title, rows, _spread(finished.study))


def _differences(finished: Finished, task: Task) -> Table:
    methods = finished.study.methods
    rows = []
    for method in methods:
        row = {"less": method.title}
        for other in methods:
            score = None if method is other else finished.difference(task, method, other)
            row[other.title] = "" if score is None else f"{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f})"
        rows.append(row)
    first = next(iter(task.scores.values()))
    remark = "Row minus column, with the 95% interval of a bootstrap over patients, drawn once for both."
    return Table(f"{task.title}: difference in {first}", rows, remark)


def _ratio_table(finished: Finished) -> Table:
    rows = []
    for ratio, method in _curve(finished.study):
        row = {"anatomy ratio": f"{ratio:g}"}
        row |= {title: _cell(finished.probes(method, score)) for score, title in _PROBES.items()}
        for task in finished.study.tasks:
            score, title = next(iter(task.scores.items()))
            row[f"{task.title}: {title}"] = _cell(finished.scores(task, method, score))
        rows.append(row)
    return Table("Anatomy ratio", rows, "AWCL with fine anatomy; 0 is SimCLR.")


def _variation_table(finished: Finished) -> Table:
    """Return the methods that are only pretrained and probed, below those that they vary."""
    by_name = {method.name: method for method in finished.study.methods}
    known = [by_name[name] for name in ("simclr", "fine") if name in by_name]
    rows = []
    for method in (*known, *finished.study.variations):
        row = {"pretraining": method.title}
        rows.append(row | {title: _cell(finished.probes(method, score)) for score, title in _PROBES.items()})
    return Table("What else matters", rows, "Fine AWCL with one change, unless another method is named.")


def _learning_rate_table(finished: Finished) -> Table:
    study = finished.study
    rows = []
    for method in all_methods(study):
        row = {"encoder": method.title}
        for task in study.tasks:
            rate = study.chosen_rate(finished.out, task, method)
            row[task.title] = "—" if rate is None else f"{rate:g}"
        rows.append(row)
    tried = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    remark = f"Of {tried}, tried with seed {study.seeds[0]}; the best on validation patients is used for all seeds."
    return Table("Learning rate", rows, remark)


def _gallery(finished: Finished) -> str:
    """Return links to the pictures of the first seed's runs, beside the tables."""
    study, lines = finished.study, ["### Pictures", ""]
    for method in (*all_methods(study), *study.variations):
        folders: dict[str, Path | None] = {"map of embeddings": finished.pretraining(method, study.seeds[0])}
        folders |= {task.title: study.task_folder(finished.out, task, method, study.seeds[0]) for task in study.tasks}
        links = [
            f"[{title}]({file.relative_to(finished.out).as_posix()})"
            for title, folder in folders.items()
            for file in (() if folder is None else (folder / name for name in _PICTURES))
            if file.is_file()
        ]
        if links:
            lines.append(f"- {method.title}: {', '.join(links)}")
    return "\n".join(lines) if len(lines) > 2 else ""


def _curve(study: Study) -> list[tuple[float, Method]]:
    by_name = {method.name: method for method in study.methods}
    ends = [(ratio, by_name[name]) for ratio, name in ((0.0, "simclr"), (1.0, "fine")) if name in by_name]
    return sorted([*ends, *((ratio, ratio_method(ratio)) for ratio in study.ratios)], key=lambda pair: pair[0])


def _draw_ratios(finished: Finished, out: Path) -> None:
    """Draw scores over the anatomy ratio, with 95% intervals over patients; both are means over the seeds."""
    curves = {title: [finished.probes(m, score) for _, m in _curve(finished.study)] for score, title in _PROBES.items()}
    for task in finished.study.tasks:
        score, title = next(iter(task.scores.items()))
        curves[f"{task.title}: {title}"] = [finished.scores(task, m, score) for _, m in _curve(finished.study)]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for title, of_ratios in curves.items():
        points = [
            (ratio, *(np.mean([_bound(score, part) for score in scores]) for part in ("value", "low", "high")))
            for (ratio, _), scores in zip(_curve(finished.study), of_ratios, strict=True)
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


def _bound(score: Mapping[str, float | None], part: str) -> float:
    """Return a score or an end of its interval; the score itself if too few patients leave no interval."""
    bound = score.get(part)
    value = score["value"] if bound is None else bound
    assert value is not None
    return value


def _cell(scores: Sequence[Mapping[str, float | None]]) -> str:
    """Return the mean and the standard deviation over the seeds; for one seed, the interval over patients."""
    if not scores:
        return "—"
    if len(scores) == 1:
        value, low, high = (_bound(scores[0], part) for part in ("value", "low", "high"))
        return f"{value:.3f} ({low:.3f} to {high:.3f})" if low < high else f"{value:.3f}"
    values = np.array([score["value"] for score in scores], float)
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _spread(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    if len(study.seeds) == 1:
        return f"On test patients, with the 95% interval of a bootstrap over them; seed {seeds}."
    return f"On test patients; mean ± standard deviation over the seeds {seeds}."


def _results(folder: Path) -> dict[str, Any] | None:
    """Return `results.json` of a run; None if it is not finished."""
    return run_folder.read_results(folder) or None
