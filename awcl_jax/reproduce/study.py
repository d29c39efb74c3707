"""Definition of a study: methods, tasks and seeds, and the resulting runs.

All methods share data, augmentation, encoder, steps and budget; a method is the changes of its file in `configs/`.
Methods that start from published weights have the encoder of these weights, which the tables state.

With `Study.learning_rates`, every method tries all of them in every task with the first seed; the one with the best
score on validation patients is used for all seeds.

With `Study.repeats`, the methods of the tables are run again with the first seed and another rounding: a deviation of
the input that is 2^-22 of it, a few units in the last place of float32. What scores move by then is noise, and no
difference below twice of it shows anything about the methods.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from awcl_jax.config.file import shipped_config
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import run_folder

PRETRAIN, DOWNSTREAM = "pretrain", "downstream"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to obtain an encoder.

    Attributes:
      name: in file names.
      title: in tables.
      config: file in `configs/` that pretrains it; None if it is not pretrained here.
      fields: changes to that configuration.
      init: of an encoder that is not pretrained: `random` or a file of weights.
      encoder: fields for its pretraining and its tasks, if its encoder differs from the others.
    """

    name: str
    title: str
    config: str | None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init: str = "random"
    encoder: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Task:
    """A downstream task of an encoder.

    Attributes:
      name: in file names.
      title: in tables.
      config: file in `configs/`.
      variant: argument of that file.
      fields: changes to that configuration.
      scores: names in `results.json` for its table, with their titles; methods are compared by the first.
    """

    name: str
    title: str
    config: str
    variant: str
    fields: Mapping[str, Any]
    scores: Mapping[str, str]

    @property
    def compared(self) -> tuple[str, str]:
        """The score by which methods are compared, and its title."""
        return next(iter(self.scores.items()))


@dataclasses.dataclass(frozen=True)
class Study:
    """A reproduction.

    Attributes:
      name: of the preset.
      variant: of the pretraining configurations.
      pretraining: fields that all methods share.
      methods: in the order of the tables.
      tasks: in the order of the tables.
      ratios: anatomy ratios of the curve, besides 1.
      seeds: of every run.
      learning_rates: that every method tries in every task; empty for those of the configurations.
      variations: of fine AWCL, pretrained and probed only, to see what else matters.
      repeats: runs of each method and task with the first seed and another rounding.
    """

    name: str
    variant: str
    pretraining: Mapping[str, Any]
    methods: tuple[Method, ...]
    tasks: tuple[Task, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...] = ()
    variations: tuple[Method, ...] = ()
    repeats: int = 0

    def tried(self, task: Task, method: Method) -> dict[float, str]:
        """Return learning rate -> folder of the run that tries it, below the study's."""
        return {rate: f"{task.name}/{method.name}-{self.seeds[0]}-lr{rate:g}" for rate in self.learning_rates}

    def chosen_rate(self, out: Path, task: Task, method: Method) -> float | None:
        """Return the learning rate with the best score on validation patients; None until all are tried.

        Args:
          out: the study's folder.

        Raises:
          InputError: the results of one of these runs have no score on validation patients.
        """
        scores = {}
        for rate, folder in self.tried(task, method).items():
            file = out / folder / run_folder.RESULTS_FILE
            if not file.is_file():
                return None
            found = list(run_folder.read_results(out / folder).get("validation", {}).values())
            if len(found) != 1:
                raise InputError(f"{file} has no score on validation patients. Restore the file, or delete its folder.")
            scores[rate] = found[0]
        return max(scores, key=lambda rate: (scores[rate], -rate)) if scores else None

    def task_folder(self, out: Path, task: Task, method: Method, seed: int, repeat: int = 0) -> Path | None:
        """Return the folder of a downstream run, which may not exist yet; None while its learning rate is unknown.

        Args:
          out: the study's folder.
          task: of the run.
          method: of its encoder.
          seed: of the run.
          repeat: 1 to `repeats` for a run with another rounding.
        """
        if not self.learning_rates or seed != self.seeds[0] or repeat:
            return out / task.name / _name_of(method, seed, repeat)
        rate = self.chosen_rate(out, task, method)
        return None if rate is None else out / self.tried(task, method)[rate]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      folder: below the study's, such as `pretrain/fine-0`.
      kind: PRETRAIN or DOWNSTREAM.
      config: complete configuration.
      learning_rate: returns the learning rate found by other runs; None if it is in `config`.
    """

    folder: str
    kind: str
    config: ConfigDict
    learning_rate: Callable[[], float | None] | None = None

    def final_config(self) -> ConfigDict:
        """Return the configuration, with results of the runs before this one."""
        config = self.config.copy_and_resolve_references()
        if self.learning_rate is not None:
            config.optim.learning_rate = self.learning_rate()
        return config

    @property
    def work(self) -> float:
        """Approximate duration, for the progress bar: pixels that the encoder learns from."""
        views = 2 if self.kind == PRETRAIN else 1
        config = self.config
        return views * config.train.steps * config.sampler.batch_size * config.augment.size**2 * 1e-6


def ratio_method(ratio: float) -> Method:
    """Return AWCL with the labels of a share of the labelled frames."""
    return Method(f"fine-{round(100 * ratio)}", f"AWCL, fine, {ratio:.0%} of labels", "fine", {"anatomy_ratio": ratio})


def ratio_methods(study: Study) -> list[tuple[float, Method]]:
    """Return the anatomy ratios of the curve with their methods, in ascending order; 0 is SimCLR."""
    by_name = {method.name: method for method in study.methods}
    ends = [(ratio, by_name[name]) for ratio, name in ((0.0, "simclr"), (1.0, "fine")) if name in by_name]
    return sorted([*ends, *((ratio, ratio_method(ratio)) for ratio in study.ratios)], key=lambda pair: pair[0])


def all_methods(study: Study) -> tuple[Method, ...]:
    """Return the methods of the tables, and those of the curve over the anatomy ratio."""
    return (*study.methods, *map(ratio_method, study.ratios))


def runs(study: Study, out: Path) -> Iterator[Run]:
    """Yield all runs, each after those that it depends on; seed after seed, so that each seed is a complete study."""
    for seed in study.seeds:
        for method in all_methods(study):
            init = method.init
            if method.config is not None:
                pretraining = _pretraining(study, method, seed)
                yield pretraining
                init = str(out / pretraining.folder)
            for task in study.tasks:
                yield from _tuning(study, task, method, seed, init, out)
        for method in study.variations:
            yield _pretraining(study, method, seed)
    for repeat in range(1, study.repeats + 1):
        for method in study.methods:
            init = method.init
            if method.config is not None:
                pretraining = _pretraining(study, method, study.seeds[0], repeat)
                yield pretraining
                init = str(out / pretraining.folder)
            for task in study.tasks:
                yield from _tuning(study, task, method, study.seeds[0], init, out, repeat)


def _name_of(method: Method, seed: int, repeat: int) -> str:
    return f"{method.name}-{seed}" + (f"-repeat{repeat}" if repeat else "")


def pretraining_folder(out: Path, method: Method, seed: int, repeat: int = 0) -> Path:
    """Return the folder of a pretraining run, which may not exist yet; arguments as of `Study.task_folder`."""
    return out / PRETRAIN / _name_of(method, seed, repeat)


def _round_otherwise(config: ConfigDict, repeat: int) -> None:
    config.augment.std *= 1 + repeat * 2.0**-22


def _pretraining(study: Study, method: Method, seed: int, repeat: int = 0) -> Run:
    assert method.config is not None
    config = shipped_config(method.config, study.variant or None)
    fields = {**study.pretraining, **method.encoder, **method.fields, "name": method.name, "seed": seed}
    config.update_from_flattened_dict(fields)
    _round_otherwise(config, repeat)
    config.report.pictures &= seed == study.seeds[0] and not repeat  # the gallery has those of one seed
    return Run(f"{PRETRAIN}/{_name_of(method, seed, repeat)}", PRETRAIN, config)


def _tuning(
    study: Study, task: Task, method: Method, seed: int, init: str, out: Path, repeat: int = 0
) -> Iterator[Run]:
    """Yield the run of a task, or those that try its learning rates."""
    config = shipped_config(task.config, task.variant or None)
    config.update_from_flattened_dict(
        {**task.fields, **method.encoder, "name": task.name, "seed": seed, "encoder.init": init}
    )
    _round_otherwise(config, repeat)
    config.report.pictures &= seed == study.seeds[0] and not repeat  # the gallery has those of one seed
    folder = f"{task.name}/{_name_of(method, seed, repeat)}"
    if not study.learning_rates:
        yield Run(folder, DOWNSTREAM, config)
    elif seed != study.seeds[0] or repeat:
        chosen = functools.partial(study.chosen_rate, out, task, method)
        yield Run(folder, DOWNSTREAM, config, chosen)
    else:
        for rate, folder in study.tried(task, method).items():
            tried = config.copy_and_resolve_references()
            tried.optim.learning_rate = rate
            yield Run(folder, DOWNSTREAM, tried)
