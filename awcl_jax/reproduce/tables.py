"""Tables and figures of a study, from the results of its runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from awcl_jax.reproduce import drawings, record
from awcl_jax.reproduce.finished import FROZEN, PROBES, Difference, Finished, bound_of, differences_of
from awcl_jax.reproduce.study import Study, Task, all_methods, pretraining_folder, ratio_methods
from awcl_jax.runtime.files import write_whole
from awcl_jax.train import run_folder

TABLES_FILE = "tables.md"
_PICTURES = ("embeddings.png", "confusion.png", "overlays.png")


def write(study: Study, out: Path) -> None:
    """Write `tables.md`, `study.json` and the curves of `drawings.draw` to the study's folder."""
    finished = Finished(study, out)
    tables = [_transfer(finished)]
    frozen = differences_of(finished, None)
    if frozen:
        title, noise = f"Frozen features: difference in {PROBES[FROZEN]}", finished.noise(FROZEN)
        tables.append(_differences(finished, title, frozen, noise))
    differences = {task.name: differences_of(finished, task) for task in study.tasks}
    for task in study.tasks:
        score, title = task.compared
        title, noise = f"{task.title}: difference in {title}", finished.noise(score, task)
        tables += [_task(finished, task), _differences(finished, title, differences[task.name], noise)]
    if study.ratios:
        tables.append(_ratio_table(finished))
    if study.variations:
        tables.append(_variation_table(finished))
    if study.learning_rates and study.tasks:
        tables.append(_learning_rate_table(finished))
    drawings.draw(finished, out)
    text = "\n\n".join([*(table.markdown() for table in tables), _gallery(finished)])
    write_whole(out / TABLES_FILE, text.rstrip() + "\n")
    run_folder.write_json(out / record.STUDY_FILE, record.as_json(finished, frozen, differences))


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
        row |= {title: _cell(finished.probes(method, score)) for score, title in PROBES.items()}
        for task in finished.study.tasks:
            score, title = task.compared
            row[f"{task.title}: {title}"] = _cell(finished.scores(task, method, score))
        rows.append(row)
    remark = f"{_spread(finished.study)} {_noise_of_first_scores(finished)}"
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
    noise = _in_words({title: finished.noise(score, task) for score, title in task.scores.items()})
    return Table(task.title, rows, f"{_spread(finished.study)} {noise}")


def _differences(finished: Finished, title: str, differences: Sequence[Difference], noise: float | None) -> Table:
    methods = finished.study.methods
    found = {(one.method, one.other): one for one in differences}

    def cell(one: Difference | None) -> str:
        if one is None:
            return ""
        text = f"{one.score.value:+.3f} ({one.score.low:+.3f} to {one.score.high:+.3f})"
        return f"**{text}**" if one.counts else text

    rows = [
        {"less": method.title} | {other.title: cell(found.get((method.name, other.name))) for other in methods}
        for method in methods
    ]
    over = "seeds and patients" if len(finished.study.seeds) > 1 else "patients"
    remark = (
        f"Row minus column, with the 95% interval of a bootstrap over {over}, drawn once for both. Comparisons: "
        f"{len(found) // 2}, of which about one in twenty excludes 0 by chance. {_called(noise)}"
    )
    return Table(title, rows, remark)


def _called(noise: float | None) -> str:
    if noise is None:
        return "No run was repeated (`--repeats`), so none is marked as a difference."
    return f"Bold: the interval excludes 0, and it is at least twice the deviation between repeats, {noise:.3f}."


def _noise_of_first_scores(finished: Finished) -> str:
    noise = {title: finished.noise(score) for score, title in PROBES.items()}
    for task in finished.study.tasks:
        score, title = task.compared
        noise[f"{task.title}: {title}"] = finished.noise(score, task)
    return _in_words(noise)


def _in_words(noise: Mapping[str, float | None]) -> str:
    known = [f"{title} {value:.3f}" for title, value in noise.items() if value is not None]
    if not known:
        return "No run was repeated, so how much scores move without any reason is not known."
    return f"Standard deviation between runs with the same seed and another rounding: {', '.join(known)}."


def _ratio_table(finished: Finished) -> Table:
    rows = []
    for ratio, method in ratio_methods(finished.study):
        row = {"anatomy ratio": f"{ratio:g}"}
        row |= {title: _cell(finished.probes(method, score)) for score, title in PROBES.items()}
        for task in finished.study.tasks:
            score, title = task.compared
            row[f"{task.title}: {title}"] = _cell(finished.scores(task, method, score))
        rows.append(row)
    return Table("Anatomy ratio", rows, f"AWCL with fine anatomy; 0 is SimCLR. {_noise_of_first_scores(finished)}")


def _variation_table(finished: Finished) -> Table:
    """Return the methods that are only pretrained and probed, below those that they vary."""
    by_name = {method.name: method for method in finished.study.methods}
    known = [by_name[name] for name in ("simclr", "fine") if name in by_name]
    rows = []
    for method in (*known, *finished.study.variations):
        row = {"pretraining": method.title}
        rows.append(row | {title: _cell(finished.probes(method, score)) for score, title in PROBES.items()})
    noise = _in_words({title: finished.noise(score) for score, title in PROBES.items()})
    return Table("What else matters", rows, f"Fine AWCL with one change, unless another method is named. {noise}")


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
        folders: dict[str, Path | None] = {
            "map of embeddings": pretraining_folder(finished.out, method, study.seeds[0])
        }
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


def _cell(scores: Sequence[Mapping[str, float | None]]) -> str:
    """Return the mean and the standard deviation over the seeds; for one seed, the interval over patients."""
    if not scores:
        return "—"
    if len(scores) == 1:
        value, low, high = (bound_of(scores[0], part) for part in ("value", "low", "high"))
        return f"{value:.3f} ({low:.3f} to {high:.3f})" if low < high else f"{value:.3f}"
    values = np.array([score["value"] for score in scores], float)
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _spread(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    if len(study.seeds) == 1:
        return f"On test patients, with the 95% interval of a bootstrap over them; seed {seeds}."
    return f"On test patients; mean ± standard deviation over the seeds {seeds}."
