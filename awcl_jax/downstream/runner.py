"""A downstream run, from configuration to results: train on an encoder, and test the result.

The configuration stops here: functions of other modules take plain values.
"""

import dataclasses
import os
import resource
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree, UInt8
from ml_collections import ConfigDict, FrozenConfigDict

from awcl_jax.augment.views import centre_view
from awcl_jax.config import build
from awcl_jax.config import downstream as downstream_config
from awcl_jax.config.checks import idle_fields
from awcl_jax.config.fields import augmentation, to_dict
from awcl_jax.config.initial import Initial, initial_variables
from awcl_jax.data import about, pipeline, selection
from awcl_jax.data.sampler import EpochPlan
from awcl_jax.downstream import step as downstream_step
from awcl_jax.downstream import tasks as downstream_tasks
from awcl_jax.evaluate.encode import EncodeFn
from awcl_jax.evaluate.scores import scores_as_json
from awcl_jax.evaluate.table import TASK_ROWS, results_table
from awcl_jax.evaluate.verdict import said_of_few
from awcl_jax.models.decoder import UNetDecoder
from awcl_jax.models.supervised import Classifier, Segmenter
from awcl_jax.models.vit import ViT
from awcl_jax.report import writing
from awcl_jax.runtime import kept_programs, multihost, sharding
from awcl_jax.train import harness, loop, optim, run_folder
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.harness import say
from awcl_jax.train.initial_state import FirstState, Given, on_first_device
from awcl_jax.train.metrics import METRICS_FILE, read_metrics, show_pictures
from awcl_jax.train.state import TrainState, parameter_count
from awcl_jax.train.workdir import Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The functions that a run computes with.

    Attributes:
      model: without parameters.
      optimiser, learning_rate: as configured.
      predict: compiled; maps frames to classes.
      body: training step for one device.
      name: what decides them, to find their compiled programs by.
    """

    model: nn.Module
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    predict: EncodeFn
    body: sharding.Step
    name: kept_programs.Name


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """Everything that a configuration describes, built and checked before the first step."""

    data: selection.Splits
    task: downstream_tasks.Planes | downstream_tasks.Segmentation
    plan: EpochPlan
    initial: Initial | None
    programs: Programs

    @property
    def given(self) -> Given | None:
        """The variables that do not start at random, if any."""
        return None if self.initial is None else self.initial.variables


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Train on an encoder, choose a checkpoint on validation patients, and test only that one, once.

    A folder with an unfinished run of the same configuration and data resumes from its latest checkpoint, with the
    numbers of an uninterrupted run.

    Args:
      config: `downstream_config.default_downstream_config`, with changes.
      workdir: folder of the run: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `results.json`,
        `test_frames.csv` (the prediction for each test frame, for paired comparisons), pictures and `report.html`. If
        it is in a bucket (`gs://BUCKET/FOLDER`), all is uploaded with every checkpoint and at the end.

    Returns:
      The content of `results.json`: `test` and `baseline`, each a dict of scores by name; the chosen step and its
      score on validation patients; counts of frames, and the confusion matrix (counts, a row for each true anatomy).

    Raises:
      InputError: configuration, data, encoder or folder is invalid; raised before anything is compiled where
        possible.
      RunStopped: SIGTERM or ctrl-C asked the run to stop; its state is saved.
    """
    with Workdir(workdir) as folder:
        # Check as much as possible, on every process: if one fails, all stop.
        mesh = sharding.make_mesh()
        with multihost.all_or_none():
            downstream_config.validate(config, devices=mesh.size)
            setup = set_up(config)
        defaults = to_dict(downstream_config.default_downstream_config())
        harness.open_run(folder, setup.data, config=to_dict(config), defaults=defaults)

        # The state before the first step is computed while the step is compiled.
        programs = setup.programs
        first = begin_state(setup, seed=config.seed)
        harness.report_data(setup.data, folder)
        for sentence in idle_fields(config):
            say(f"warning: {sentence}")
        say(
            f"{config.task.kind}: {setup.task.train.positions.size} training frames, {setup.task.classes} classes; "
            f"{config.model.arch} ({config.encoder.init}{', frozen' if config.encoder.frozen else ''}) of "
            f"{parameter_count(first.shapes.params) / 1e6:.2f} M parameters on {mesh.size} "
            f"{mesh.devices.flat[0].platform} device(s); the run is in {folder.home}"
        )
        if setup.initial is not None:
            harness.report_initial(setup.initial.describe(config, aspect=setup.data.aspect))

        # Train, from the newest checkpoint on, until all steps are taken or patience runs out.
        with harness.open_records(folder, first.shapes, mesh, config=to_dict(config)) as records:
            history = _history(folder.files, setup.task.chosen_by, up_to=records.start)

            def validate(done: int, state: TrainState) -> bool:
                values = setup.task.validate(programs.predict, state.variables, batch_size=config.eval.batch_size)
                history[done] = values[setup.task.chosen_by]
                records.writer.write(done, values)
                return out_of_patience(history, config.train.patience)

            events = (  # the validation first: the checkpoint records its score
                loop.Event(config.train.validate_every, validate, phase="validating"),
                records.saving(history, every=config.train.validate_every),
            )
            step = harness.step_on(mesh, programs.body, via=config.train.mapping)
            if not out_of_patience(history, config.train.patience):
                with harness.attended(records, log_every=config.train.log_every, events=events) as hooks:
                    batches = batches_of(config, setup, start=records.start)
                    state, step, batches = harness.begin(
                        first, step, batches, mesh=mesh, records=records, hooks=hooks, name=programs.name
                    )
                    loop.train(
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

        # Test the chosen checkpoint, once.
        with harness.after_training(folder):
            return _conclude(config, setup, history, first, folder)


def set_up(config: ConfigDict) -> Setup:
    """Read the data's labels, make model and task, and read the encoder.

    Raises:
      InputError: the data, the encoder and the configuration do not match.
    """
    data = selection.select(
        build.dataset_path(config),
        size=config.data.size,
        cache_mb=config.data.cache_mb,
        disk_cache_gb=config.data.disk_cache_gb,
        val_share=config.data.val_share,
        seed=config.seed,
        mask_overlays=config.data.mask_overlays,
        skip_unreadable=config.data.skip_unreadable,
    )
    if augmentation(config).beams == "fan":
        data.train.reader.require_fans()
    task = make_task(config, data)
    initial = initial_variables(config)
    plan = EpochPlan(task.train.positions, batch_size=config.sampler.batch_size, seed=config.seed)
    return Setup(data, task, plan, initial, make_programs(config, task.classes))


def make_task(config: ConfigDict, data: selection.Splits) -> downstream_tasks.Planes | downstream_tasks.Segmentation:
    """Make the task that the configuration names, on this data."""
    if config.task.kind == "planes":
        return downstream_tasks.planes(
            data,
            granularity=config.task.granularity,
            anatomies=config.task.anatomies,
            label_fraction=config.task.label_fraction,
            seed=config.seed,
        )
    return downstream_tasks.segmentation(
        data,
        head=config.task.head,
        empty_frames=config.task.empty_frames,
        label_fraction=config.task.label_fraction,
        seed=config.seed,
    )


def make_programs(config: ConfigDict, classes: int) -> Programs:
    """Make the functions that runs of this configuration compute with, whatever their encoder and frames.

    All such runs in one process, as in a study of dozens, share the programs and compile them once.
    """
    groups = ("task", "encoder", "sampler", "augment", "model", "optim", "train", "seed")
    return _programs(build.frozen_part(config, groups, without="encoder.init"), classes)


@lru_cache(maxsize=32)
def _programs(config: FrozenConfigDict, classes: int) -> Programs:
    model = make_model(config, classes)
    learning_rate, optimiser = build.make_optimiser(config)
    if config.encoder.frozen:
        optimiser = optim.train_all_but(optimiser, "encoder")
    kinds = {"planes": downstream_step.classification, "segmentation": downstream_step.segmentation}
    objective = kinds[config.task.kind](augmentation=augmentation(config), seed=config.seed)
    body = downstream_step.make_step(model, optimiser, objective, learning_rate=learning_rate, seed=config.seed)
    name = {"run": "downstream", "config": config.to_json_best_effort(), "classes": classes}
    return Programs(model, optimiser, learning_rate, make_predict(config, model), body, name)


def make_model(config: ConfigDict, classes: int) -> Classifier | Segmenter:
    """Make the encoder and the head on top of it, without parameters."""
    encoder = build.make_encoder(config)
    if config.task.kind == "planes":
        return Classifier(encoder, classes, config.encoder.frozen)
    decoder = UNetDecoder(
        classes,
        width=max(1, round(64 * config.model.width_factor)),
        dtype=encoder.dtype,
        axis_name=sharding.AXIS,
        pyramid=isinstance(encoder, ViT),
    )
    return Segmenter(encoder, decoder, config.encoder.frozen)


def make_predict(config: ConfigDict, model: nn.Module) -> EncodeFn:
    """Compile the map from frames to classes, one per frame or one per pixel of the frame as read."""
    options = augmentation(config)

    @jax.jit
    def predict(variables: PyTree, frames: UInt8[Array, "b h w"]) -> Int[Array, " b"] | UInt8[Array, "b h w"]:
        logits = model.apply(variables, centre_view(frames, options=options), train=False)
        assert isinstance(logits, jax.Array)
        if logits.ndim == 2:
            return logits.argmax(axis=-1)
        logits = jax.image.resize(logits, (*frames.shape, logits.shape[-1]), "bilinear")
        return logits.argmax(axis=-1).astype(jnp.uint8)

    return predict


def begin_state(setup: Setup, *, seed: int) -> FirstState:
    """Start computing the state before the first step: random, except for what `setup` starts from."""
    programs = setup.programs
    return FirstState(programs.model, programs.optimiser, seed=seed, given=setup.given, name=programs.name)


History = dict[int, float]
"""Step -> score on the validation patients."""


def batches_of(config: ConfigDict, setup: Setup, *, start: int = 0) -> Iterator[pipeline.Batch]:
    """Yield this process's batches from step `start` on."""
    columns = dict(setup.task.columns())
    if augmentation(config).beams == "fan":
        columns["fans"] = setup.data.train.reader.fans
    return pipeline.supervised_batches(
        setup.plan,
        columns,
        start=start,
        stop=config.train.steps,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
    )


def _history(workdir: Path, score: str, *, up_to: int) -> History:
    """Read the validations of the steps that a resumed run has already taken."""
    file = workdir / METRICS_FILE
    lines = read_metrics(file) if up_to and file.is_file() else []
    return {line["step"]: line[score] for line in lines if score in line and line["step"] <= up_to}


def best_step(history: History) -> int:
    """Return the step of the highest score, the latest among equals, as `Checkpoints` keeps it."""
    return max(history, key=lambda step: (history[step], step))


def out_of_patience(history: History, patience: int | None) -> bool:
    """Return whether at least `patience` validations followed the best one, the first among equals."""
    if patience is None or not history:
        return False
    best = max(history, key=lambda step: (history[step], -step))
    return sum(step > best for step in history) >= patience


def _conclude(config: ConfigDict, setup: Setup, history: History, first: FirstState, folder: Workdir) -> dict[str, Any]:
    """Test the chosen checkpoint; print the table, write the results and the pictures."""
    chosen = best_step(history)
    say(f"Testing the checkpoint of step {chosen} on the test patients ...")
    folder.share()
    with Checkpoints(folder.files, read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(chosen, on_first_device(first.shapes.variables))
    outcome = setup.task.examine(setup.programs.predict, variables, batch_size=config.eval.batch_size)
    results = {
        "task": config.task.kind,
        "encoder": config.encoder.init,
        **({} if setup.initial is None else {"initial": setup.initial.describe(config, aspect=setup.data.aspect)}),
        "steps": max(history),
        "chosen_step": chosen,
        "validation": {setup.task.chosen_by: history[chosen]},
        "training_frames": int(setup.task.train.positions.size),
        "frames": selection.counts(setup.data),
        "machines": selection.frames_by_machine(setup.data.train.index, setup.task.train.positions),
        "unreadable": selection.count_unreadable(setup.data),
        "data": setup.data.fingerprint,
        "datasets": about.as_json(setup.data.datasets),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "test": scores_as_json(outcome.scores),
        "baseline": scores_as_json(outcome.baseline),
        "verdict": said_of_few(len({frame["patient"] for frame in outcome.frames})),
        **outcome.details,
    }
    if not multihost.first():
        return results
    run_folder.write_frames(folder.files / run_folder.FRAMES_FILE, outcome.frames)
    run_folder.write_json(folder.files / run_folder.RESULTS_FILE, results)
    columns = {"baseline": outcome.baseline, f"chosen (step {chosen})": outcome.scores}
    say(f"\n{results_table(columns, rows=TASK_ROWS[config.task.kind])}")
    for line in [*results["verdict"], *([outcome.left_out] if outcome.left_out else [])]:
        say(line)
    if config.report.pictures:
        from awcl_jax.report import drawing

        say("Drawing pictures ...")
        drawing.plot_loss(folder.files / METRICS_FILE, folder.files / "loss.png")
        outcome.draw(folder.files)
        show_pictures(folder.files, max(history))
    page = writing.leave_in(folder.files, home=folder.home)
    say(f"\nCheckpoints, metrics and pictures are in {folder.home}{harness.where_to_look(page, folder)}")
    return results
