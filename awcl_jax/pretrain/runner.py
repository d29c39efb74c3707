"""A pretraining run, from configuration to results.

The configuration stops here: functions of other modules take plain values.
"""

import dataclasses
import os
import resource
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Int
from ml_collections import ConfigDict, FrozenConfigDict

from awcl_jax.config import build
from awcl_jax.config.checks import idle_fields
from awcl_jax.config.fields import augmentation, to_dict
from awcl_jax.config.initial import Initial, initial_variables
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.data import about, pipeline, selection
from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan
from awcl_jax.evaluate.encode import make_encode
from awcl_jax.evaluate.frozen import Evaluation, LabelledFrames, cached_features, downsampled_pixels
from awcl_jax.evaluate.scores import scores_as_json
from awcl_jax.evaluate.table import results_table
from awcl_jax.evaluate.verdict import verdict
from awcl_jax.losses.awcl import LossOptions
from awcl_jax.models.pretraining import ContrastiveModel
from awcl_jax.pretrain.health import Health
from awcl_jax.pretrain.step import make_step
from awcl_jax.report import writing
from awcl_jax.runtime import child_process, kept_programs, multihost, sharding
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import harness, loop, run_folder
from awcl_jax.train.harness import say
from awcl_jax.train.initial_state import FirstState, Given
from awcl_jax.train.metrics import METRICS_FILE, read_metrics, show_pictures
from awcl_jax.train.momentum import Queue
from awcl_jax.train.state import TrainState, parameter_count
from awcl_jax.train.workdir import Workdir

_LAST_LINES = 10  # of the metrics, over which the loss at the end is averaged
_COUNTED_BATCHES = 100  # batches whose anatomies are counted for the results


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The functions that a run computes with.

    Attributes:
      model: without parameters.
      optimiser, learning_rate: as configured.
      body: training step for one device.
      name: what decides them, to find their compiled programs by.
    """

    model: ContrastiveModel
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    body: sharding.Step
    name: kept_programs.Name


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """Everything that a configuration describes, built and checked before the first step."""

    data: selection.Splits
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]
    plan: BatchPlan
    initial: Initial | None
    programs: Programs
    evaluation: Evaluation
    health: Health

    @property
    def given(self) -> Given | None:
        """The variables that do not start at random, if any."""
        return None if self.initial is None else self.initial.variables


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Pretrain an encoder, evaluate it against an untrained one, and write the results.

    A folder with an unfinished run of the same configuration and data resumes from its latest checkpoint, with the
    numbers of an uninterrupted run.

    Args:
      config: `config.default_config`, with changes.
      workdir: folder of the run: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `results.json`,
        `test_frames.csv` (the kNN's prediction for each test frame, for paired comparisons), pictures,
        `embedding_map.npz` and `report.html`, which shows all of it. If it is in a bucket (`gs://BUCKET/FOLDER`), all
        is uploaded with every checkpoint and at the end.

    Returns:
      The content of `results.json`: counts of frames, the scores of the pixels, the untrained and the trained encoder,
      paired differences, measurements without labels, sentences on all of it (`verdict`), the confusion matrix of the
      trained encoder's nearest neighbours (counts, a row for each true anatomy; left out above 1,000 anatomies), the
      composition of the first batches, and memory.

    Raises:
      InputError: configuration, data or folder is invalid; raised before anything is compiled where possible.
      RunStopped: SIGTERM or ctrl-C asked the run to stop; its state is saved.
    """
    with Workdir(workdir) as folder:
        # Check as much as possible, on every process: if one fails, all stop.
        mesh = sharding.make_mesh()
        with multihost.all_or_none():
            validate(config, devices=mesh.size)
            setup = set_up(config)
        defaults = to_dict(default_config())
        harness.open_run(folder, setup.data, config=to_dict(config), defaults=defaults)

        # The state before the first step is computed while the step is compiled.
        programs, queue = setup.programs, make_queue(config, setup.labels)
        first = FirstState(
            programs.model, programs.optimiser, seed=config.seed, queue=queue, given=setup.given, name=programs.name
        )
        harness.report_data(setup.data, folder)
        for warning in _warnings(config, setup):
            say(warning)
        say(
            f"{config.model.arch} of {parameter_count(first.shapes.params) / 1e6:.2f} M parameters on {mesh.size} "
            f"{mesh.devices.flat[0].platform} device(s); the run is in {folder.home}"
        )
        if setup.initial is not None:
            harness.report_initial(setup.initial.describe(config, aspect=setup.data.aspect))
            say("  the scores named `untrained` are of this encoder before the first step of this run")

        # Train, from the newest checkpoint on.
        with harness.open_records(folder, first.shapes, mesh, config=to_dict(config)) as records:
            scores: dict[int, float] = {}

            def evaluate(done: int, state: TrainState) -> None:
                if values := setup.evaluation.validate(state.variables):
                    scores[done] = values["val/knn/macro_f1"]
                if values := values | setup.health.measure(state.variables):
                    records.writer.write(done, values)

            events = (  # the evaluation first: the checkpoint records its score
                loop.Event(config.train.eval_every, evaluate, phase="evaluating"),
                records.saving(scores, every=config.train.checkpoint_every),
            )
            step = harness.step_on(mesh, programs.body, via=config.train.mapping)
            with harness.attended(records, log_every=config.train.log_every, events=events) as hooks:
                batches = batches_of(config, setup, start=records.start)
                state, step, batches = harness.begin(
                    first,
                    step,
                    batches,
                    mesh=mesh,
                    records=records,
                    hooks=hooks,
                    name=programs.name,
                    compile_aside=partial(compile_aside, config, granularities=setup.labels.ndim),
                )
                state = loop.train(
                    state,
                    step,
                    batches,
                    place=partial(sharding.place_batch, mesh=mesh),
                    start=records.start,
                    steps=config.train.steps,
                    batch_size=config.sampler.batch_size,
                    hooks=hooks,
                    bad_steps=records.bad_step_limit(
                        config.train.bad_steps, setup.plan, setup.data.train.index.frame_ids
                    ),
                    one_by_one=sharding.on_cpus(mesh),
                )

        # Score on the test patients.
        with harness.after_training(folder):
            return _conclude(config, setup, first.variables, state.variables, folder)


def preview(config: ConfigDict, out: Path) -> str:
    """Check a configuration, and draw and describe the batches that a run of it would train on.

    Nothing of the model is compiled, and no run is started.

    Args:
      config: as for `run`.
      out: the PNG to write.

    Returns:
      The data and the batches in a few lines.

    Raises:
      InputError: configuration or data is invalid.
      OSError: the picture cannot be written.
    """
    from awcl_jax.pretrain import preview as batches  # it needs Matplotlib

    validate(config, devices=sharding.make_mesh().size)
    setup = set_up(config)
    described = batches.preview(
        setup.data.train,
        setup.labels,
        setup.plan,
        augmentation(config),
        seed=config.seed,
        steps=config.train.steps,
        out=out,
    )
    return "\n".join([selection.describe(setup.data), described, *_warnings(config, setup)])


def _warnings(config: ConfigDict, setup: Setup) -> list[str]:
    """Return a line for each thing about fields, labels and batches that is most likely not meant."""
    of_labels = selection.nothing_apart(setup.labels), selection.more_unlabelled(setup.labels, setup.plan)
    return [f"warning: {sentence}" for sentence in (*idle_fields(config), *of_labels) if sentence]


def set_up(config: ConfigDict) -> Setup:
    """Read the data's labels, plan the batches and make the model; nothing is compiled and nothing written.

    Raises:
      InputError: the data and the configuration do not match.
    """
    path = build.dataset_path(config)
    data = selection.select(
        path,
        size=config.data.size,
        cache_mb=config.data.cache_mb,
        disk_cache_gb=config.data.disk_cache_gb,
        val_share=config.data.val_share,
        seed=config.seed,
        mask_overlays=config.data.mask_overlays,
        skip_unreadable=config.data.skip_unreadable,
        unlabelled=config.data.unlabelled,
    )
    if augmentation(config).beams == "fan":
        data.train.reader.require_fans()
    labels = selection.positive_labels(
        data.train.index,
        config.positives,
        granularity=config.granularity,
        anatomy_ratio=config.anatomy_ratio,
        seed=config.seed,
    )
    plan = selection.make_plan(data.train.index, labels, config.positives, seed=config.seed, **config.sampler.to_dict())
    programs = make_programs(config, granularities=labels.ndim)
    evaluation = _make_evaluation(config, programs.model, data)
    health = Health.of(
        programs.model, augmentation(config), data.val, seed=config.seed, batch_size=config.eval.batch_size
    )
    return Setup(data, labels, plan, initial_variables(config), programs, evaluation, health)


def make_programs(config: ConfigDict, *, granularities: int) -> Programs:
    """Make the functions that runs of this configuration compute with, whatever their frames and batches.

    All such runs in one process, as in a study of dozens, share the programs and compile them once.

    Args:
      config: of the run.
      granularities: 2 if a frame has a fine and a coarse label, otherwise 1.
    """
    groups = ("model", "augment", "loss", "queue", "optim", "train", "seed")
    return _programs(build.frozen_part(config, groups, without="model.init"), granularities)


@lru_cache(maxsize=8)
def _programs(config: FrozenConfigDict, granularities: int) -> Programs:
    model = build.make_model(config)
    learning_rate, optimiser = build.make_optimiser(config)
    weight = config.loss.coarse_weight
    body = make_step(
        model,
        optimiser,
        learning_rate=learning_rate,
        augmentation=augmentation(config),
        loss=LossOptions(
            temperature=config.loss.temperature,
            block_size=config.loss.block_size,
            group_weights=(1 - weight, weight) if granularities == 2 else None,
            exchange=config.loss.exchange,
        ),
        chunks=config.train.encode_chunks,
        momentum=config.queue.momentum if config.queue.size else None,
        seed=config.seed,
    )
    name = {"run": "pretraining", "config": config.to_json_best_effort(), "granularities": granularities}
    return Programs(model, optimiser, learning_rate, body, name)


def _make_evaluation(config: ConfigDict, model: ContrastiveModel, data: selection.Splits) -> Evaluation:
    index = data.train.index
    names = index.fine_names if config.eval.granularity == "fine" else index.coarse_names
    if unknown := set(config.eval.anatomies) - set(names):
        raise InputError(f"config.eval.anatomies has unknown names {sorted(unknown)}; the data has {', '.join(names)}.")
    classified = [name in (config.eval.anatomies or names) for name in names]
    parts = (data.train, data.val, data.test)
    unlabelled = all((part.index.labels(config.eval.granularity) == UNLABELLED).all() for part in parts)

    # One class, or none, is not scored, and needs no frames to be scored on.
    several = len(set(index.labels(config.eval.granularity).tolist()) - {UNLABELLED}) > 1

    def labelled(part: selection.Split, purpose: str) -> LabelledFrames:
        labels = part.index.labels(config.eval.granularity)
        # UNLABELLED, -1, selects the False at the end.
        frames = np.flatnonzero(np.array([*classified, False])[labels])
        if frames.size == 0 and not unlabelled and (several or part is data.train):
            shown = ", ".join(config.eval.anatomies or names)
            raise InputError(
                f"No {purpose} frame of {index.path} shows any of the anatomies to classify ({shown}). Prepare the "
                "dataset again: `ingest` spreads labelled patients over the splits, a column `split` sets them."
            )
        return LabelledFrames(part.reader, frames, labels[frames], part.index.patients[frames])

    return Evaluation(
        make_encode(model, augmentation(config)),
        config.eval.batch_size,
        train=labelled(data.train, "train"),
        val=labelled(data.val, "val"),
        test=labelled(data.test, "test"),
        names=names,
        neighbours=config.eval.neighbours,
    )


def compile_aside(config: ConfigDict, batch: pipeline.Batch, *, granularities: int) -> None:
    """Compile the step of this run in a process that ends, and with it the compiler's memory.

    Args:
      config: of the run.
      batch: of this process.
      granularities: as in `make_programs`.
    """
    shapes = {name: [list(array.shape), str(array.dtype)] for name, array in batch.arrays.items()}
    request = {"config": to_dict(config), "granularities": granularities, "batch": shapes}
    child_process.run_to_end("awcl_jax.pretrain.compile_step", request)


def make_queue(config: ConfigDict, labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]) -> Queue | None:
    """Return the empty queue of a momentum encoder, or None if the method has none."""
    if not config.queue.size:
        return None
    return Queue.empty(config.queue.size, config.model.embedding, columns=labels.shape[1:])


def batches_of(config: ConfigDict, setup: Setup, *, start: int = 0) -> Iterator[pipeline.Batch]:
    """Yield this process's batches from step `start` on."""
    reader = setup.data.train.reader
    return pipeline.batches(
        setup.plan,
        reader,
        labels=setup.labels,
        scans=setup.data.train.index.scans,
        start=start,
        stop=config.train.steps,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
        fans=reader.fans if augmentation(config).beams == "fan" else None,
    )


def _conclude(
    config: ConfigDict, setup: Setup, untrained: dict[str, Any], trained: dict[str, Any], folder: Workdir
) -> dict[str, Any]:
    """Score on the test patients; print the table, write the results and the pictures."""
    evaluation = setup.evaluation
    if evaluation.unscored:
        say("Comparing the untrained with the trained encoder, without labels ...")
    else:
        say("Scoring pixels, untrained and trained encoder on the test patients ...")
    before, after = (cached_features(evaluation.encoder(variables)) for variables in (untrained, trained))
    pixels = cached_features(downsampled_pixels)
    columns = {
        "pixels": evaluation.test_scores(pixels),
        "untrained": evaluation.test_scores(before),
        "trained": evaluation.test_scores(after),
    }
    differences = evaluation.differences(after, {"untrained": before, "pixels": pixels})
    health = {
        name: measured
        for name, variables in (("untrained", untrained), ("trained", trained))
        if (measured := setup.health.measure(variables))
    }
    confusion = evaluation.knn_confusion(after)
    results = {
        "steps": config.train.steps,
        **({} if setup.initial is None else {"initial": setup.initial.describe(config, aspect=setup.data.aspect)}),
        "frames": selection.counts(setup.data),
        "machines": selection.frames_by_machine(setup.data.train.index),
        "unreadable": selection.count_unreadable(setup.data),
        "data": setup.data.fingerprint,
        "datasets": about.as_json(setup.data.datasets),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{column: scores_as_json(scores) for column, scores in columns.items()},
        "differences": {name: scores_as_json([score]) for name, score in differences.items()},
        "health": health,
        "anatomies": list(evaluation.names),
        **({} if confusion is None else {"knn_confusion": confusion.tolist()}),
        "batches": selection.anatomies_in_batches(
            setup.data.train.index, setup.plan, steps=min(config.train.steps, _COUNTED_BATCHES)
        ),
    }
    if not multihost.first():
        return results
    results["verdict"] = verdict(
        losses=_last_losses(folder.files),
        differences=differences,
        health=health,
        patients=len(np.unique(evaluation.test.patients)),
        shown_by=evaluation.test_patients_by_anatomy(),
    )
    run_folder.write_json(folder.files / run_folder.RESULTS_FILE, results)
    if not evaluation.unscored:
        rows = _test_frames(setup, evaluation.knn_predictions(after))
        run_folder.write_frames(folder.files / run_folder.FRAMES_FILE, rows)
    say("\n".join(["", *results["verdict"]]))
    say(f"\n{evaluation.unscored or results_table(columns)}")
    if evaluation.left_out:
        say(evaluation.left_out)
    frame_map = None
    if config.report.pictures:
        from awcl_jax.pretrain import pictures

        say("Drawing pictures ...")
        frame_map = pictures.write_pictures(
            folder.files,
            selection=setup.data,
            plan=setup.plan,
            augmentation=augmentation(config),
            seed=config.seed,
            before=before,
            after=after,
            map_frames=config.report.map_frames,
        )
        show_pictures(folder.files, config.train.steps)
    page = writing.leave_in(folder.files, frame_map, home=folder.home)
    say(f"\nCheckpoints, metrics and pictures are in {folder.home}{harness.where_to_look(page, folder)}")
    return results


def _test_frames(setup: Setup, predictions: Int[np.ndarray, " n"]) -> list[dict[str, str]]:
    """Return a row for each test frame: its id, patient and machine, its anatomy, and the one that the kNN predicts."""
    index, test, names = setup.data.test.index, setup.evaluation.test, setup.evaluation.names
    return [
        selection.row_of(index, frame) | {"label": names[label], "prediction": names[prediction]}
        for frame, label, prediction in zip(test.frames, test.labels, predictions, strict=True)
    ]


def _last_losses(folder: Path) -> list[tuple[float, float]]:
    """Return loss and that of a collapsed encoder in the last lines of the run's metrics."""
    lines = read_metrics(folder / METRICS_FILE)
    pairs = [(line["loss"], line["collapsed_loss"]) for line in lines if {"loss", "collapsed_loss"} <= line.keys()]
    return pairs[-_LAST_LINES:]
