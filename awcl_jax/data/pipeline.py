"""Batches of frames, in the order of the plan, read ahead by Grain."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int, UInt8

from awcl_jax.data.anatomy import UNLABELLED
from awcl_jax.data.sampler import BatchPlan, EpochPlan, composition
from awcl_jax.runtime.errors import InputError


@runtime_checkable
class Reader(Protocol):
    """Gives the pictures of frames."""

    def read(self, frames: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w"]:
        """The frames' pictures, all of one size."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """This host's rows of one batch.

    Attributes:
      step: the step it is for.
      arrays: what goes to the devices: `image` uint8 [b, h, w], or [b, 2, h, w] where the second view is of another
        frame; `label` int32 [b] or [b, m], UNLABELLED for a group of its own; `row` int32 [b], the row in the global
        batch; `frame` int32 [b, 2], the frames of its two views.
      composition: what the global batch was composed of, for the metrics.
    """

    step: int
    arrays: dict[str, np.ndarray]
    composition: dict[str, float]


def batches(
    plan: BatchPlan,
    reader: Reader,
    *,
    labels: Int[np.ndarray, " n"] | Int[np.ndarray, "n m"],
    scans: Int[np.ndarray, " n"],
    start: int,
    stop: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    read_ahead: int = 4,
) -> Iterator[Batch]:
    """Batches of steps `start` to `stop`, of which this process gets its own rows only.

    An element of the Grain dataset is a whole batch, so that neither the number of threads nor of processes can change
    what it is composed of (Grain's own batching would).

    Args:
      plan: which frames make up which batch.
      reader: pictures of the frames that the plan counts.
      labels: whom the loss pulls together, UNLABELLED for nobody.
      scans: scan of each frame, for the report of the composition.
      start: first step.
      stop: the step after the last.
      process: this process among `processes`.
      processes: number of processes that share the batch.
      threads: threads that read and decode.
      read_ahead: batches held ready.

    Raises:
      InputError: the batch does not divide by the number of processes.
    """
    mine = _rows_of(process, processes, plan.batch_size)

    def load(step: int) -> Batch:
        frames = plan.frames(step)
        partners = plan.partners(step, frames) if plan.pairs == "cross_scan" else frames
        image = reader.read(frames[mine])
        if plan.pairs == "cross_scan":
            image = np.stack([image, reader.read(partners[mine])], axis=1)
        rows = np.arange(plan.batch_size)
        classes = plan.classes[frames]
        groups = np.where(classes == UNLABELLED, -1 - rows, classes)
        arrays = {
            "image": image,
            "label": labels[frames[mine]].astype(np.int32),
            "row": mine,
            "frame": np.stack([frames, partners], axis=1)[mine].astype(np.int32),
        }
        return Batch(step, arrays, composition(groups, np.stack([scans[frames], scans[partners]], axis=1)))

    return _read_ahead(load, start, stop, threads, read_ahead)


def supervised_batches(
    plan: EpochPlan,
    columns: Mapping[str, Callable[[Int[np.ndarray, " b"]], np.ndarray]],
    *,
    start: int,
    stop: int,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    read_ahead: int = 4,
) -> Iterator[Batch]:
    """Batches of frames with what is to be learnt of them.

    Args:
      plan: which frames make up which batch.
      columns: name of an array -> how it is read for some frames, as `{"image": reader.read}`; `row` is added.
      start: first step.
      stop: the step after the last.
      process: this process among `processes`.
      processes: number of processes that share the batch.
      threads: threads that read and decode.
      read_ahead: batches held ready.

    Raises:
      InputError: the batch does not divide by the number of processes.
    """
    mine = _rows_of(process, processes, plan.batch_size)

    def load(step: int) -> Batch:
        frames = plan.frames(step)[mine]
        return Batch(step, {"row": mine} | {name: read(frames) for name, read in columns.items()}, {})

    return _read_ahead(load, start, stop, threads, read_ahead)


def _rows_of(process: int, processes: int, batch_size: int) -> Int[np.ndarray, " b"]:
    if batch_size % processes:
        raise InputError(
            f"The batch of {batch_size} frames does not divide by {processes} processes; take a multiple of "
            f"{processes}."
        )
    share = batch_size // processes
    return np.arange(process * share, (process + 1) * share, dtype=np.int32)


def _read_ahead(load: Callable[[int], Batch], start: int, stop: int, threads: int, read_ahead: int) -> Iterator[Batch]:
    if start >= stop:
        return
    # The first is read by itself: a step is compiled for it, and threads that read ahead would hold that up.
    yield load(start)
    dataset: Any = grain.MapDataset.range(start + 1, stop).map(load)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    yield from dataset.to_iter_dataset(options)
