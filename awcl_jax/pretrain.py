"""A pretraining run, from configuration to results.

The configuration stops here: functions of other modules take plain values.
"""

import dataclasses
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, UInt8
from ml_collections import ConfigDict

from awcl_jax import config as configuration
from awcl_jax import interruption, loop, optim, processes, run_folder, sharding, watchdog
from awcl_jax.anatomy import UNLABELLED
from awcl_jax.augment import Augmentation, centre_view
from awcl_jax.bad_steps import BadSteps
from awcl_jax.checkpoint import Checkpoints
from awcl_jax.data import datasets, pipeline, selection
from awcl_jax.data.sampler import BatchPlan, EpochPlan
from awcl_jax.data.unreadable import write_list
from awcl_jax.encode import EncodeFn
from awcl_jax.errors import InputError
from awcl_jax.evaluation import Evaluation, LabelledFrames, downsampled_pixels, remembered
from awcl_jax.evaluators.scores import scores_as_json
from awcl_jax.first_state import FirstState
from awcl_jax.host_memory import uncollected
from awcl_jax.metrics import MetricsWriter, NoMetrics, show_pictures
from awcl_jax.models.heads import Projection
from awcl_jax.models.pretraining import ContrastiveModel
from awcl_jax.models.resnet import ResNet, make_resnet
from awcl_jax.models.weights import load_torch_resnet
from awcl_jax.momentum import Queue
from awcl_jax.report_page import writing
from awcl_jax.results_table import results_table
from awcl_jax.spool import Spool
from awcl_jax.step import make_step
from awcl_jax.train_state import TrainState, parameter_count

_COUNTED_BATCHES = 100  # batches whose anatomies are counted for the results


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """What a run computes with.

    Attributes:
      model: without parameters.
      optimiser, learning_rate: as the configuration has them.
      body: training step for one device.
    """

    model: ContrastiveModel
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    body: sharding.Step


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """All that a configuration stands for, made and checked, before the first step."""

    data: selection.Selection
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]
    plan: BatchPlan
    encoder: PyTree | None
    programs: Programs
    evaluation: Evaluation


@runtime_checkable
class _OfData(Protocol):
    @property
    def data(self) -> selection.Selection: ...


_Prepared = TypeVar("_Prepared", bound=_OfData)


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Pretrain an encoder, evaluate it against an untrained one, and write down what came of it.

    A folder that holds an unfinished run of the same configuration and data goes on from its latest checkpoint, with
    the numbers of a run that was never stopped.

    Args:
      config: as `config.default_config`, with changes.
      workdir: folder of the run: `config.json`, `checkpoints/`, `metrics.jsonl`, `tensorboard/`, `results.json`,
        pictures, `embedding_map.npz` and, to look at all of it, `report.html`. Where it is on a bucket
        (`gs://BUCKET/FOLDER`), all is sent there with every checkpoint and at the end.

    Returns:
      What `results.json` holds: counts of frames, the scores of the pixels, the untrained and the trained encoder,
      the confusion matrix of the trained encoder's nearest neighbours (counts, a row for each true anatomy), what the
      first batches were made of, and memory.

    Raises:
      InputError: configuration, data or folder cannot work; before anything is compiled where that can be known.
      Interrupted: SIGTERM or ctrl-C asked the run to stop; its state is saved.
    """
    with Spool(workdir) as folder:
        return _run(config, folder)


def _run(config: ConfigDict, folder: Spool) -> dict[str, Any]:
    mesh = sharding.make_mesh()
    setup = claim(config, configuration.default_config(), folder, partial(_checked, config, devices=mesh.size))
    queue = make_queue(config, setup.labels)
    programs = setup.programs
    first = FirstState(programs.model, programs.optimiser, seed=config.seed, queue=queue, encoder=setup.encoder)
    tell_of_data(setup.data, folder)
    say(
        f"{config.model.arch} of {parameter_count(first.shapes.params) / 1e6:.2f} M parameters on {mesh.size} "
        f"{mesh.devices.flat[0].platform} device(s); the run is in {folder.home}"
    )
    state = _train(config, setup, mesh, first, folder)
    return _conclude(config, setup, first.wait(), state, folder)


def claim(config: ConfigDict, default: ConfigDict, folder: Spool, prepare: Callable[[], _Prepared]) -> _Prepared:
    """Check all that can be checked, on every process, and begin or go on in the run's folder.

    Args:
      config: of any kind of run.
      default: of this kind, for fields that the version which began the run did not know.
      folder: of the run.
      prepare: checks the configuration and reads what the run is of.

    Returns:
      What `prepare` gives.

    Raises:
      InputError: one of the processes cannot go on, or the folder has another one's run going on in it.
    """
    with processes.together():
        setup = prepare()
        begin = partial(
            run_folder.claim,
            folder.files,
            config=configuration.to_dict(config),
            defaults=configuration.to_dict(default),
            fingerprint=setup.data.fingerprint,
            pixels=setup.data.pixels_fingerprint(),
        )
        if processes.first():
            folder.hold()
            folder.fetch()
            begin()
            folder.send()
    # The others after the first, so that they can tell whether it is the same folder.
    with processes.together():
        if not processes.first():
            folder.fetch()
            begin(begun=True)
    return setup


def _checked(config: ConfigDict, *, devices: int) -> Setup:
    configuration.validate(config, devices=devices)
    return set_up(config)


def set_up(config: ConfigDict) -> Setup:
    """Read the data's labels, plan the batches and make the model; nothing is compiled and nothing written.

    Raises:
      InputError: the data and the configuration do not fit.
    """
    path = dataset_path(config)
    data = selection.select(
        path,
        size=config.data.size,
        cache_mb=config.data.cache_mb,
        val_share=config.data.val_share,
        seed=config.seed,
        mask_overlays=config.data.mask_overlays,
        skip_unreadable=config.data.skip_unreadable,
        unlabelled=config.data.unlabelled,
    )
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
    return Setup(data, labels, plan, initial_encoder(config), programs, evaluation)


def initial_encoder(config: ConfigDict) -> PyTree | None:
    """Variables that the encoder starts from; None for random ones.

    Raises:
      InputError: the file of weights is not there, or of another architecture.
    """
    if config.model.init == "random":
        return None
    return load_torch_resnet(
        config.model.init,
        config.model.arch,
        mean=config.augment.mean,
        std=config.augment.std,
        width_factor=config.model.width_factor,
    )


def make_programs(config: ConfigDict, *, granularities: int) -> Programs:
    """What runs of this configuration compute with, whatever frames they see, and in whatever batches.

    Such runs of one process, as a study has them by the dozen, get the same programs and compile them once.

    Args:
      config: of the run.
      granularities: 2 where a frame has a fine and a coarse label, otherwise 1.
    """
    fields = ("model", "augment", "loss", "queue", "optim", "train", "seed")
    own = {field: value for field, value in configuration.to_dict(config).items() if field in fields}
    del own["model"]["init"]
    return _programs(json.dumps(own, sort_keys=True), granularities)


@lru_cache(maxsize=8)
def _programs(config_json: str, granularities: int) -> Programs:
    config = configuration.from_dict(json.loads(config_json))
    model = make_model(config)
    learning_rate, optimiser = make_optimiser(config)
    weight = config.loss.coarse_weight
    body = make_step(
        model,
        optimiser,
        learning_rate=learning_rate,
        augmentation=configuration.augmentation(config),
        temperature=config.loss.temperature,
        block_size=config.loss.block_size,
        kernel=config.loss.kernel,
        group_weights=(1 - weight, weight) if granularities == 2 else None,
        exchange=config.loss.exchange,
        chunks=config.train.encode_chunks,
        momentum=config.queue.momentum if config.queue.size else None,
        seed=config.seed,
    )
    return Programs(model, optimiser, learning_rate, body)


@lru_cache(maxsize=32)
def step_on(mesh: Mesh, body: sharding.Step, *, via: str) -> sharding.Step:
    """The training step over these devices, compiled once."""
    return sharding.map_step(body, mesh, via=via)


def make_model(config: ConfigDict) -> ContrastiveModel:
    """Encoder and projection, without parameters."""
    projection = Projection(hidden=config.model.hidden, embedding=config.model.embedding)
    return ContrastiveModel(encoder=make_encoder(config), projection=projection)


def make_encoder(config: ConfigDict) -> ResNet:
    """The encoder, without parameters."""
    return make_resnet(
        config.model.arch,
        width_factor=config.model.width_factor,
        strides=config.model.strides,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=sharding.AXIS,
        remat=config.model.remat,
    )


def make_optimiser(config: ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The learning rate by step, and the optimiser that follows it."""
    learning_rate = optim.learning_rate_schedule(
        peak=config.optim.learning_rate,
        steps=config.train.steps,
        warmup_steps=config.optim.warmup_steps,
        schedule=config.optim.schedule,
    )
    optimiser = optim.make_optimiser(
        config.optim.name,
        learning_rate=learning_rate,
        weight_decay=config.optim.weight_decay,
        decay_all=config.optim.decay_all,
        clip_norm=config.optim.clip_norm,
    )
    return learning_rate, optimiser


@lru_cache(maxsize=8)
def make_encode(model: ContrastiveModel, options: Augmentation) -> EncodeFn:
    """The compiled way from frames to features: no augmentation, running statistics of batch norm.

    Runs of one process that are alike in both compile it once.
    """

    @jax.jit
    def encode(variables: PyTree, frames: UInt8[Array, "b h w"]) -> Float[Array, "b f"]:
        features = model.apply(variables, centre_view(frames, options=options), method="features")
        assert isinstance(features, jax.Array)
        return features

    return encode


def dataset_path(config: ConfigDict) -> str | Path:
    """Folder of the dataset that the configuration names; the phantom is made where it is not there yet.

    Raises:
      InputError: it is another dataset, and `data.path` is empty.
    """
    if config.data.path:
        return str(config.data.path)
    if config.data.dataset != "phantom":
        raise InputError(
            f"config.data.path is missing: prepare the dataset with `python -m awcl_jax.ingest {config.data.dataset} "
            "--out=DIR` and give --config.data.path=DIR."
        )
    return datasets.prepare_phantom(config.data.preset)


def _make_evaluation(config: ConfigDict, model: ContrastiveModel, data: selection.Selection) -> Evaluation:
    index = data.train.index
    names = index.fine_names if config.eval.granularity == "fine" else index.coarse_names
    if unknown := set(config.eval.anatomies) - set(names):
        raise InputError(f"config.eval.anatomies names {sorted(unknown)}; the data has {', '.join(names)}.")
    told_apart = [name in (config.eval.anatomies or names) for name in names]
    parts = (data.train, data.val, data.test)
    blind = all((part.index.labels(config.eval.granularity) == UNLABELLED).all() for part in parts)

    def labelled(part: selection.Part, purpose: str) -> LabelledFrames:
        labels = part.index.labels(config.eval.granularity)
        # The False at the end is what UNLABELLED, -1, points at.
        frames = np.flatnonzero(np.array([*told_apart, False])[labels])
        if frames.size == 0 and not blind:
            shown = ", ".join(config.eval.anatomies or names)
            raise InputError(f"No {purpose} frame of {index.path} shows any of the anatomies to tell apart ({shown}).")
        return LabelledFrames(part.reader, frames, labels[frames], part.index.patients[frames])

    return Evaluation(
        make_encode(model, configuration.augmentation(config)),
        config.eval.batch_size,
        train=labelled(data.train, "train"),
        val=labelled(data.val, "val"),
        test=labelled(data.test, "test"),
        names=names,
        neighbours=config.eval.neighbours,
    )


def make_queue(config: ConfigDict, labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n 2"]) -> Queue | None:
    """The empty queue of a momentum encoder, where the method has one."""
    if not config.queue.size:
        return None
    return Queue.empty(config.queue.size, config.model.embedding, columns=labels.shape[1:])


def batches_of(config: ConfigDict, setup: Setup, *, start: int = 0) -> Iterator[pipeline.Batch]:
    """This process's batches from step `start` on."""
    return pipeline.batches(
        setup.plan,
        setup.data.train.reader,
        labels=setup.labels,
        scans=setup.data.train.index.scans,
        start=start,
        stop=config.train.steps,
        process=jax.process_index(),
        processes=jax.process_count(),
        threads=config.data.threads,
    )


def _train(config: ConfigDict, setup: Setup, mesh: Mesh, first: FirstState, folder: Spool) -> TrainState:
    """All steps that are not taken yet, with checkpoints, metrics and evaluations along the way."""
    with ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder.files))
        resumed, start = resume(checkpoints, sharding.replicated_shapes(first.shapes, mesh), steps=config.train.steps)
        writer = metrics_writer(stack, folder.files, start)
        bad = BadSteps(folder.files, start_step=start, writes=processes.first())
        scores: dict[int, float] = {}

        def evaluate(done: int, state: TrainState) -> None:
            if values := setup.evaluation.validate(state.variables):
                scores[done] = values["val/knn/macro_f1"]
                writer.write(done, values)

        return take_steps(
            config,
            mesh,
            first,
            resumed,
            step_on(mesh, setup.programs.body, via=config.train.mapping),
            batches_of(config, setup, start=start),
            start=start,
            writer=writer,
            # The evaluation first: its score goes with the checkpoint.
            events=(
                loop.Event(config.train.eval_every, evaluate, doing="evaluating"),
                saving(checkpoints, writer, folder, scores, every=config.train.checkpoint_every),
            ),
            bad=bad,
            note_bad=partial(note_bad, bad, setup.plan, setup.data.train.index.frame_ids),
        )


def saving(
    checkpoints: Checkpoints,
    writer: MetricsWriter | NoMetrics,
    folder: Spool,
    scores: Mapping[int, float],
    *,
    every: int,
) -> loop.Event:
    """A checkpoint every so many steps and before a run leaves, with the score of its step where there is one."""

    def save(done: int, state: TrainState) -> None:
        writer.sync()
        with processes.together():
            checkpoints.save(done, state, score=scores.get(done))
            folder.send(after=checkpoints.wait)

    return loop.Event(every, save, before_leaving=True, doing="saving")


def take_steps(
    config: ConfigDict,
    mesh: Mesh,
    first: FirstState,
    resumed: TrainState | None,
    step: sharding.Step,
    batches: Iterator[pipeline.Batch],
    *,
    start: int,
    writer: MetricsWriter | NoMetrics,
    events: Sequence[loop.Event],
    bad: BadSteps,
    note_bad: Callable[[int, loop.Metrics], None],
) -> TrainState:
    """`loop.train` as every kind of run takes it: it can be asked to stop, is watched, and notes bad steps.

    The step is compiled before it has a state to begin with, which may still be being made.
    """
    place = partial(sharding.place_batch, mesh=mesh)
    with interruption.noticed() as asked_to_stop, watchdog.watching() as begin:
        begin("waiting for data", start + 1)
        ahead = list(islice(batches, 1))
        begin("compiling the step", start + 1)
        with uncollected():
            for batch in ahead:
                say("Compiling the step, or reading it where a run like this one has left it ...")
                sharding.compile_step(step, sharding.replicated_shapes(first.shapes, mesh), place(batch.arrays))
        begin("waiting for the state", start + 1)
        state = sharding.replicate(first.wait(), mesh) if resumed is None else resumed
        return loop.train(
            state,
            step,
            chain(ahead, batches),
            place=place,
            start=start,
            steps=config.train.steps,
            batch_size=config.sampler.batch_size,
            log_every=config.train.log_every,
            write=writer.write,
            events=events,
            asked_to_stop=asked_to_stop,
            begin=begin,
            bad_steps=config.train.bad_steps,
            bad_in_a_row=bad.in_a_row,
            note_bad=note_bad,
            one_by_one=sharding.on_cpus(mesh),
            show_progress=processes.first(),
        )


def resume(checkpoints: Checkpoints, shapes: TrainState, *, steps: int) -> tuple[TrainState | None, int]:
    """The state to go on from, as `shapes`, or None; and the number of steps taken."""
    found = checkpoints.newest(shapes, warn=lambda line: say(f"warning: {line}"))
    if found is None:
        return None, 0
    start, state = found
    say(f"Going on from step {start} of {steps}.")
    return state, start


def note_bad(bad: BadSteps, plan: BatchPlan | EpochPlan, ids: np.ndarray, done: int, values: loop.Metrics) -> None:
    """Write down a step whose update was left out."""
    frames = plan.frames(done - 1)
    if isinstance(plan, BatchPlan) and plan.pairs == "cross_scan":
        frames = np.concatenate([frames, plan.partners(done - 1)])
    bad.write(done, **values, frames=ids[frames].tolist())
    say(f"warning: step {done} is left out: loss {values['loss']}, gradient norm {values['gradient_norm']}")


def metrics_writer(stack: ExitStack, workdir: Path, start: int) -> MetricsWriter | NoMetrics:
    """Only one process writes metrics."""
    return stack.enter_context(MetricsWriter(workdir, start_step=start)) if processes.first() else NoMetrics()


def _conclude(
    config: ConfigDict, setup: Setup, untrained: TrainState, state: TrainState, folder: Spool
) -> dict[str, Any]:
    """Scores on the test patients; the table, the results and the pictures."""
    evaluation = setup.evaluation
    before, after = (remembered(evaluation.encoder(s.variables)) for s in (untrained, state))
    columns = {
        "pixels": evaluation.test_scores(downsampled_pixels),
        "untrained": evaluation.test_scores(before),
        "trained": evaluation.test_scores(after),
    }
    results = {
        "steps": config.train.steps,
        "frames": selection.counts(setup.data),
        "unreadable": selection.count_unreadable(setup.data),
        "data": setup.data.fingerprint,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{column: scores_as_json(scores) for column, scores in columns.items()},
        "anatomies": list(evaluation.names),
        "knn_confusion": evaluation.knn_confusion(after).tolist(),
        "batches": selection.anatomies_in_batches(
            setup.data.train.index, setup.plan, steps=min(config.train.steps, _COUNTED_BATCHES)
        ),
    }
    if not processes.first():
        return results
    run_folder.write_json(folder.files / run_folder.RESULTS_FILE, results)
    say("\nNo frame has a label, and so nothing is scored." if evaluation.blind else f"\n{results_table(columns)}")
    frame_map = None
    if config.report.pictures:
        from awcl_jax import pictures

        frame_map = pictures.write_pictures(
            folder.files,
            selection=setup.data,
            plan=setup.plan,
            augmentation=configuration.augmentation(config),
            seed=config.seed,
            before=before,
            after=after,
            map_frames=config.report.map_frames,
        )
        show_pictures(folder.files, config.train.steps)
    page = writing.leave_in(folder.files, frame_map, home=folder.home)
    say(f"\nCheckpoints, metrics and pictures are in {folder.home}{where_to_look(page, folder)}")
    return results


def tell_of_data(data: selection.Selection, folder: Spool) -> None:
    """Say which frames there are; those left out are named in a file of the run's folder."""
    say(selection.describe(data))
    if data.left_out and processes.first():
        write_list(data.left_out, folder.files / run_folder.UNREADABLE_FILE)
        say(f"  they are named in {folder.home}/{run_folder.UNREADABLE_FILE}")


def where_to_look(page: Path | None, folder: Spool) -> str:
    """The end of the last line of a run: its page, where there is one."""
    return f"; open {folder.home}/{page.name}" if page else ""


def say(message: str) -> None:
    """Print once, however many processes there are."""
    if processes.first():
        print(message, flush=True)
