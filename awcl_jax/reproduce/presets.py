"""The studies that a command can name."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from awcl_jax.reproduce.study import Method, Study, Task, ratio_method
from awcl_jax.runtime.errors import InputError

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
    """Return a study on the phantom: a quarter of an hour on two cores, to see that all works on simulated frames."""
    frames = {"data.size": 64, "augment.size": 48, "eval.batch_size": 128}
    short = frames | {"train.steps": 100, "train.validate_every": 50, "report.pictures": True}
    masks = short | {"sampler.batch_size": 16}
    return Study(
        name="phantom-small",
        variant="",
        pretraining=frames
        | {
            "train.steps": 200,
            "train.eval_every": 200,
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
            Task("fetal", "II: fetal structures", "downstream_segmentation", "", masks, _HEADS),
            Task(
                "heart",
                "III: adult heart",
                "downstream_segmentation",
                "",
                masks | {"data.preset": "heart", "task.head": ()},
                _SEGMENTATION,
            ),
        ),
        ratios=(),
        seeds=(0,),
    )


def public(paths: Mapping[str, str], *, imagenet: str | None = None) -> Study:
    """Return a study on public frames: FETAL_PLANES_DB to pretrain and classify, HC18 and USGRA_SEG to segment.

    Pretraining also uses, without labels, the training studies of HC18 and of every further dataset.

    Args:
      paths: dataset (`fetal_planes_db`, `hc18`, `usgra` and others) -> folder of the prepared dataset; for what is
        missing see `require_datasets`.
      imagenet: file with the weights of a ResNet-50 (v1 strides) trained on ImageNet, for the methods that start from
        them; None omits these methods.
    """
    return Study(
        name="public",
        variant="fetal_planes_db",
        pretraining={
            "data.size": 80,
            "augment.size": 64,
            "model.width_factor": 0.5,
            "data.path": paths.get("fetal_planes_db", ""),
            "data.unlabelled": tuple(path for name, path in paths.items() if name not in ("fetal_planes_db", "usgra")),
            "train.steps": 300,
            "train.eval_every": 300,
            "train.checkpoint_every": 100,
        },
        methods=(*METHODS, *(_from_imagenet(imagenet) if imagenet else ())),
        tasks=_small_tasks(paths),
        ratios=(0.1, 0.3, 0.5, 0.8),
        seeds=(0, 1, 2),
        learning_rates=(3e-4, 1e-3),
        variations=_VARIATIONS,
        repeats=1,
    )


def public_long(paths: Mapping[str, str]) -> Study:
    """Return `public` with ten times the steps, of twice the frames, on FETAL_PLANES_DB alone.

    A pretraining takes 20 to 70 minutes of one core. Further datasets are not used: all methods see the same frames.

    Args:
      paths: as of `public`.
    """
    return dataclasses.replace(
        public(paths),
        name="public-long",
        pretraining={
            "data.size": 72,
            "augment.size": 64,
            "model.width_factor": 0.5,
            "data.path": paths.get("fetal_planes_db", ""),
            "sampler.batch_size": 64,
            "train.steps": 3000,
            "train.eval_every": 250,
            "train.checkpoint_every": 250,
        },
        variations=(),
    )


def public_weights(paths: Mapping[str, str], *, imagenet: str) -> Study:
    """Return a study of what pretraining adds to ImageNet's weights, at 112 pixels, with all masks and with few.

    A pretraining is that of the variant `from_weights` of the configurations: 600 steps, an hour or more of one core.

    Args:
      paths: as of `public`.
      imagenet: likewise.
    """
    frames = {"data.size": 128, "augment.size": 112}
    encoder = _resnet_50()
    pretrained = (method for method in METHODS if method.name in ("simclr", "coarse", "fine"))
    return Study(
        name="public-weights",
        variant="from_weights",
        pretraining={"data.path": paths.get("fetal_planes_db", "")},
        methods=(
            Method("imagenet", "ImageNet", None, init=imagenet, encoder=encoder),
            *(_started(method, imagenet, encoder) for method in pretrained),
        ),
        tasks=(
            *_plane_tasks(paths, frames),
            *(task for share in (1.0, 0.25, 0.1, 0.05) for task in _mask_tasks(paths, frames, share=share)),
        ),
        ratios=(),
        seeds=(0, 1, 2),
        learning_rates=(3e-4, 1e-3),
        repeats=1,
    )


def require_datasets(study: Study, paths: Mapping[str, str]) -> None:
    """Check that the datasets of a public study have folders: that of pretraining, and those of its tasks.

    Raises:
      InputError: some have none; the message has the flags to add.
    """
    # Without HC18 the pretraining of `public` would be another one.
    pretraining = ("fetal_planes_db", *(("hc18",) if "data.unlabelled" in study.pretraining else ()))
    needed = dict.fromkeys((*pretraining, *(task.variant for task in study.tasks)))
    if missing := [name for name in needed if name not in paths]:
        raise InputError(
            f"--preset={study.name} needs prepared datasets. Add "
            f"{' '.join(f'--data={name}=DIR' for name in missing)}; see `python -m awcl_jax.ingest --help`."
        )


def _small_tasks(paths: Mapping[str, str]) -> tuple[Task, ...]:
    """Return the tasks of a small network: planes at 64 pixels, masks at 80."""
    frames = {"data.size": 80, "augment.size": 64, "model.width_factor": 0.5}
    return (*_plane_tasks(paths, frames), *_mask_tasks(paths, frames | {"augment.size": 80}))


def _plane_tasks(paths: Mapping[str, str], frames: Mapping[str, Any]) -> Iterator[Task]:
    """Yield the standard planes with all labels, a tenth and a hundredth of them."""
    fields = {**frames, "data.path": paths.get("fetal_planes_db", ""), "train.steps": 200, "train.validate_every": 50}
    few = fields | {"train.steps": 100, "train.validate_every": 25}
    title = "I: standard planes"
    yield Task("planes", title, "downstream_planes", "fetal_planes_db", fields, _CLASSIFICATION)
    for percent in (10, 1):
        yield Task(
            f"planes-{percent}",
            f"{title}, {percent}% of the labels",
            "downstream_planes",
            "fetal_planes_db",
            few | {"task.label_fraction": percent / 100},
            _CLASSIFICATION,
        )


def _mask_tasks(paths: Mapping[str, str], frames: Mapping[str, Any], *, share: float = 1.0) -> Iterator[Task]:
    """Yield heads, and nerves and vessels, with a share of the masks."""
    name, title = ("", "") if share == 1.0 else (f"-{share * 100:g}", f", {share:.0%} of the masks")
    fields = {**frames, "train.steps": 150, "train.validate_every": 50, "sampler.batch_size": 16}
    if share < 1.0:
        fields["task.label_fraction"] = share
    yield Task(
        f"hc18{name}",
        f"II: fetal head{title}",
        "downstream_segmentation",
        "hc18",
        fields | {"data.path": paths.get("hc18", "")},
        _HEADS,
    )
    yield Task(
        f"usgra{name}",
        f"III: nerves and vessels{title}",
        "downstream_segmentation",
        "usgra",
        # Nerves are small: with as many steps as for heads, a network only begins to find them.
        fields | {"data.path": paths.get("usgra", ""), "train.steps": 400, "train.validate_every": 100},
        _SEGMENTATION,
    )


_VARIATIONS = (
    Method("fine-cold", "temperature 0.05", "fine", {"loss.temperature": 0.05}),
    Method("fine-warm", "temperature 0.5", "fine", {"loss.temperature": 0.5}),
    Method("fine-labelled", "no unlabelled frames in a batch", "fine", {"sampler.unlabelled_share": 0.0}),
    Method("fine-half", "half of a batch unlabelled", "fine", {"sampler.unlabelled_share": 0.5}),
    Method("fine-masked", "overlays masked", "fine", {"data.mask_overlays": True}),
    Method("simclr-masked", "SimCLR, overlays masked", "simclr", {"data.mask_overlays": True}),
    Method("fine-alone", "without the further datasets", "fine", {"data.unlabelled": ()}),
    Method("fine-large", "batches of 64", "fine", {"sampler.batch_size": 64}),
    Method("fine-long", "900 steps", "fine", {"train.steps": 900}),
    Method("simclr-long", "SimCLR, 900 steps", "simclr", {"train.steps": 900}),
)


def _resnet_50() -> dict[str, Any]:
    """Return the fields of an encoder for the weights that `--imagenet` names."""
    return {
        "model.arch": "resnet50",
        "model.strides": "v1",
        "model.width_factor": 1.0,
        "augment.mean": 0.449,
        "augment.std": 0.226,
    }


def _started(method: Method, weights: str, encoder: Mapping[str, Any]) -> Method:
    """Return a method that starts from weights."""
    return dataclasses.replace(
        method,
        name=f"imagenet-{method.name}",
        title=f"{method.title}, from ImageNet (ResNet-50)",
        fields={**method.fields, "model.init": weights},
        encoder=encoder,
    )


def _from_imagenet(weights: str) -> Iterator[Method]:
    """Yield the methods that start from ImageNet's weights, and the same encoder without them."""
    encoder = _resnet_50()
    yield Method("random-50", "random init (ResNet-50)", None, encoder=encoder)
    yield Method("imagenet", "ImageNet (ResNet-50)", None, init=weights, encoder=encoder)
    for method in (*(method for method in METHODS if method.name in ("simclr", "fine")), ratio_method(0.1)):
        yield _started(method, weights, encoder)
