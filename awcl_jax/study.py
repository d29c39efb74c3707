"""What a reproduction consists of: methods, tasks and seeds, and the runs that they make.

All methods share data, augmentation, encoder, steps and budget; a method is what its file in `configs/` changes.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from awcl_jax.errors import InputError

PRETRAIN, DOWNSTREAM = "pretrain", "downstream"


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to an encoder.

    Attributes:
      name: in file names.
      title: in tables.
      config: file in `configs/` that pretrains it; None for one that is not pretrained here.
      fields: of that configuration, changed.
      init: of the encoder where it is not pretrained: `random` or a file of weights.
    """

    name: str
    title: str
    config: str | None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init: str = "random"


@dataclasses.dataclass(frozen=True)
class Task:
    """What an encoder is put to.

    Attributes:
      name: in file names.
      title: in tables.
      config: file in `configs/`.
      variant: argument of that file.
      fields: of that configuration, changed.
      scores: names in `results.json` of what its table shows, with their titles; the first is what methods are
        compared by.
    """

    name: str
    title: str
    config: str
    variant: str
    fields: Mapping[str, Any]
    scores: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Study:
    """A reproduction.

    Attributes:
      name: of the preset.
      variant: of the pretraining configurations.
      pretraining: fields that all methods share.
      methods: in the order of the tables.
      tasks: in the order of the tables.
      ratios: anatomy ratios of the curve, beside 1.
      seeds: of every run.
    """

    name: str
    variant: str
    pretraining: Mapping[str, Any]
    methods: tuple[Method, ...]
    tasks: tuple[Task, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
      folder: below the study's, such as `pretrain/fine-0`.
      kind: PRETRAIN or DOWNSTREAM.
      config: whole configuration.
    """

    folder: str
    kind: str
    config: ConfigDict

    @property
    def work(self) -> float:
        """Roughly how long it takes, to tell how much is left: pixels that the encoder learns from."""
        views = 2 if self.kind == PRETRAIN else 1
        config = self.config
        return views * config.train.steps * config.sampler.batch_size * config.augment.size**2 * 1e-6


METHODS = (
    Method("random", "random init", None),
    Method("scan", "patient metadata", "scan"),
    Method("simclr", "SimCLR", "simclr"),
    Method("moco", "MoCo v2", "moco"),
    Method("coarse", "AWCL, coarse", "coarse"),
    Method("fine", "AWCL, fine", "fine"),
    Method("both", "AWCL, fine and coarse", "fine", {"granularity": "both"}),
)

_CLASSIFICATION = {
    "macro_f1": "macro-F1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "accuracy": "accuracy",
}
_SEGMENTATION = {"dice/mean": "Dice", "iou/mean": "IoU"}
_HEADS = _SEGMENTATION | {"hc/mae_mm": "HC error, mm"}


def phantom_small() -> Study:
    """Everything on the phantom, in a quarter of an hour on two cores: to see that it works, on simulated frames."""
    short = {"train.steps": 100, "train.validate_every": 50, "report.pictures": True, "eval.batch_size": 128}
    return Study(
        name="phantom-small",
        variant="",
        pretraining={
            "train.steps": 300,
            "train.eval_every": 300,
            "train.checkpoint_every": 100,
            "report.pictures": False,
        },
        methods=METHODS,
        tasks=(
            Task("planes", "I: standard planes", "downstream_planes", "", short, _CLASSIFICATION),
            Task(
                "planes-10",
                "I: standard planes, 10% of the labels",
                "downstream_planes",
                "",
                short | {"task.label_fraction": 0.1, "report.pictures": False},
                _CLASSIFICATION,
            ),
            Task("fetal", "II: fetal structures", "downstream_segmentation", "", short | {"augment.size": 64}, _HEADS),
            Task(
                "heart",
                "III: adult heart",
                "downstream_segmentation",
                "",
                short | {"data.preset": "heart", "augment.size": 64, "task.head": ()},
                _SEGMENTATION,
            ),
        ),
        ratios=(),
        seeds=(0,),
    )


def public(paths: Mapping[str, str]) -> Study:
    """Public frames: FETAL_PLANES_DB to pretrain and classify, HC18 and USGRA_SEG to segment.

    Args:
      paths: dataset (`fetal_planes_db`, `hc18`, `usgra`) -> folder of the prepared dataset.

    Raises:
      InputError: a folder is missing.
    """
    needed = ("fetal_planes_db", "hc18", "usgra")
    if missing := [name for name in needed if name not in paths]:
        raise InputError(
            f"The preset public needs prepared datasets: give {' '.join(f'--data={name}=DIR' for name in missing)}; "
            "`python -m awcl_jax.ingest --help` says how to prepare them."
        )
    frames = {"data.size": 112, "augment.size": 96, "model.width_factor": 0.5}
    tuning = frames | {"train.steps": 200, "train.validate_every": 50}
    masks = frames | {"augment.size": 112, "train.steps": 150, "train.validate_every": 50, "sampler.batch_size": 16}
    return Study(
        name="public",
        variant="fetal_planes_db",
        pretraining=frames
        | {
            "data.path": paths["fetal_planes_db"],
            "train.steps": 300,
            "train.eval_every": 300,
            "train.checkpoint_every": 100,
            "report.pictures": False,
        },
        methods=METHODS,
        tasks=(
            Task(
                "planes",
                "I: standard planes",
                "downstream_planes",
                "fetal_planes_db",
                tuning | {"data.path": paths["fetal_planes_db"]},
                _CLASSIFICATION,
            ),
            Task(
                "hc18",
                "II: fetal head",
                "downstream_segmentation",
                "hc18",
                masks | {"data.path": paths["hc18"]},
                _HEADS,
            ),
            Task(
                "usgra",
                "III: nerves and vessels",
                "downstream_segmentation",
                "usgra",
                masks | {"data.path": paths["usgra"]},
                _SEGMENTATION,
            ),
        ),
        ratios=(0.1, 0.3, 0.5, 0.8),
        seeds=(0, 1, 2),
    )


def ratio_method(ratio: float) -> Method:
    """AWCL with the labels of a share of the labelled frames."""
    return Method(f"fine-{round(100 * ratio)}", f"AWCL, fine, {ratio:.0%} of labels", "fine", {"anatomy_ratio": ratio})


def all_methods(study: Study) -> tuple[Method, ...]:
    """The methods of the tables, and those of the curve over the anatomy ratio."""
    return (*study.methods, *map(ratio_method, study.ratios))


def runs(study: Study, out: Path) -> Iterator[Run]:
    """All runs, in an order in which each finds what it builds on: seed after seed, so that a part is a whole study."""
    for seed in study.seeds:
        for method in all_methods(study):
            init = method.init
            if method.config is not None:
                folder = f"{PRETRAIN}/{method.name}-{seed}"
                config = _load(method.config, study.variant)
                fields = {**study.pretraining, **method.fields, "name": method.name, "seed": seed}
                config.update_from_flattened_dict(fields)
                yield Run(folder, PRETRAIN, config)
                init = str(out / folder)
            for task in study.tasks:
                config = _load(task.config, task.variant)
                config.update_from_flattened_dict(
                    {**task.fields, "name": task.name, "seed": seed, "encoder.init": init}
                )
                yield Run(f"{task.name}/{method.name}-{seed}", DOWNSTREAM, config)


def _load(name: str, variant: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(variant or None)
