"""Tables and figures of a study, from the results of its runs."""

import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from awcl_jax import run_folder
from awcl_jax.evaluators.paired import classification_differences, mean_differences
from awcl_jax.evaluators.scores import Score
from awcl_jax.study import PRETRAIN, Method, Study, Task, ratio_method

TABLES_FILE = "tables.md"
_PROBES = {"knn/macro_f1": "kNN macro-F1", "probe/macro_f1": "linear probe macro-F1"}


@dataclasses.dataclass(frozen=True)
class Finished:
    """What has been computed of a study.

    Attributes:
      study: whose runs these are.
      out: its folder.
    """

    study: Study
    out: Path

    def values(self, task: Task, method: Method, score: str) -> Float[np.ndarray, " seeds"]:
        """A score on the test patients, for every seed that is finished."""
        found = (self.results(task.name, method, seed) for seed in self.study.seeds)
        return np.array([results["test"][score]["value"] for results in found if results and score in results["test"]])

    def probed(self, method: Method, score: str) -> Float[np.ndarray, " seeds"]:
        """A score of the frozen features, as pretraining reports it; the untrained encoder's for a random one."""
        if method.config is None and method.init != "random":
            return np.array([])
        column, folder = "trained", method
        if method.config is None:
            # Every pretraining run of a seed starts from the same untrained encoder.
            column, folder = "untrained", next(other for other in self.study.methods if other.config)
        found = (self.results(PRETRAIN, folder, seed) for seed in self.study.seeds)
        return np.array([results[column][score]["value"] for results in found if results])

    def results(self, part: str, method: Method, seed: int) -> dict[str, Any] | None:
        """`results.json` of a run, None where it is not finished."""
        file = self.folder(part, method, seed) / run_folder.RESULTS_FILE
        return run_folder.read_json(file) if file.is_file() else None

    def folder(self, part: str, method: Method, seed: int) -> Path:
        return self.out / part / f"{method.name}-{seed}"

    def difference(self, task: Task, method: Method, other: Method) -> Score | None:
        """What `method` is better by in the task's first score, paired by frame, with the frames of all seeds."""
        rows, others = [], []
        for seed in self.study.seeds:
            files = [self.folder(task.name, m, seed) / "test_frames.csv" for m in (method, other)]
            if all(file.is_file() for file in files):
                rows += _read(files[0])
                others += _read(files[1])
        if not rows:
            return None
        assert [row["frame"] for row in rows] == [row["frame"] for row in others], "the same frames in the same order"
        patients = np.unique([row["patient"] for row in rows], return_inverse=True)[1]
        if "prediction" in rows[0]:
            names = sorted({row["label"] for row in rows} | {row["prediction"] for row in (*rows, *others)})
            numbers = {name: number for number, name in enumerate(names)}
            labels, one, two = (
                np.array([numbers[row[column]] for row in table])
                for table, column in ((rows, "label"), (rows, "prediction"), (others, "prediction"))
            )
            scores = classification_differences(labels, one, two, patients, names=names)
            return next(score for score in scores if score.name == "macro_f1")
        names = [column for column in rows[0] if column.startswith("dice/")]
        one, two = (
            np.array([[float(row[name]) if row[name] else math.nan for name in names] for row in table])
            for table in (rows, others)
        )
        return mean_differences(one, two, patients, names=names, mean="mean")[0]


def write(study: Study, out: Path) -> None:
    """Write `tables.md`, `tables.json` and, where there is a curve, `anatomy_ratio.png` into the study's folder."""
    finished = Finished(study, out)
    tables = [_transfer(finished), *(_differences(finished, task) for task in study.tasks)]
    if study.ratios:
        tables.append(_ratio_table(finished))
        _draw_ratios(finished, out / "anatomy_ratio.png")
    (out / TABLES_FILE).write_text("\n\n".join(table.markdown() for table in tables) + "\n")
    run_folder.write_json(out / "tables.json", {table.title: table.rows for table in tables})


@dataclasses.dataclass(frozen=True)
class Table:
    """A table: its title, and rows of cells by column, each of them with the same columns."""

    title: str
    rows: Sequence[Mapping[str, str]]
    remark: str = ""

    def markdown(self) -> str:
        columns = list(self.rows[0]) if self.rows else []
        lines = [f"### {self.title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row.values()) + " |" for row in self.rows]
        return "\n".join([*lines, *(["", self.remark] if self.remark else [])])


def _transfer(finished: Finished) -> Table:
    rows = []
    for method in finished.study.methods:
        row = {"encoder": method.title}
        row |= {title: _mean(finished.probed(method, score)) for score, title in _PROBES.items()}
        for task in finished.study.tasks:
            for score, title in task.scores.items():
                row[f"{task.title}: {title}"] = _mean(finished.values(task, method, score))
        rows.append(row)
    seeds = ", ".join(map(str, finished.study.seeds))
    spread = "mean ± standard deviation over the seeds" if len(finished.study.seeds) > 1 else "seed"
    return Table("Transfer", rows, f"On test patients; {spread} {seeds}.")


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
    remark = "Row less column, with the 95% interval of a bootstrap over patients that are drawn once for both."
    return Table(f"{task.title}: difference in {first}", rows, remark)


def _ratio_table(finished: Finished) -> Table:
    rows = []
    for ratio, method in _curve(finished.study):
        row = {"anatomy ratio": f"{ratio:g}"}
        row |= {title: _mean(finished.probed(method, score)) for score, title in _PROBES.items()}
        for task in finished.study.tasks:
            score, title = next(iter(task.scores.items()))
            row[f"{task.title}: {title}"] = _mean(finished.values(task, method, score))
        rows.append(row)
    return Table("Anatomy ratio", rows, "AWCL with fine anatomy; 0 is SimCLR.")


def _curve(study: Study) -> list[tuple[float, Method]]:
    by_name = {method.name: method for method in study.methods}
    ends = [(ratio, by_name[name]) for ratio, name in ((0.0, "simclr"), (1.0, "fine")) if name in by_name]
    return sorted([*ends, *((ratio, ratio_method(ratio)) for ratio in study.ratios)], key=lambda pair: pair[0])


def _draw_ratios(finished: Finished, out: Path) -> None:
    curves = {title: [finished.probed(m, score) for _, m in _curve(finished.study)] for score, title in _PROBES.items()}
    for task in finished.study.tasks:
        score, title = next(iter(task.scores.items()))
        curves[f"{task.title}: {title}"] = [finished.values(task, m, score) for _, m in _curve(finished.study)]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for title, values in curves.items():
        points = [(r, v.mean(), v.std()) for (r, _), v in zip(_curve(finished.study), values, strict=True) if v.size]
        if points:
            ratios, means, deviations = zip(*points, strict=True)
            ax.errorbar(ratios, means, deviations, marker="o", capsize=3, label=title)
    ax.set(xlabel="anatomy ratio", ylabel="score on test patients", title="More labels in pretraining")
    ax.grid(alpha=0.3)
    if ax.has_data():
        ax.legend(fontsize="small")
    figure.savefig(out, dpi=120)


def _mean(values: Float[np.ndarray, " seeds"]) -> str:
    if not values.size:
        return "—"
    return f"{values.mean():.3f}" if values.size == 1 else f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))
