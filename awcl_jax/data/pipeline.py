"""Batches of frames, in the order of the plan, read ahead by Grain."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Float32, Int, UInt8

from awcl_jax.data.sampler import BatchPlan, EpochPlan, composition
from awcl_jax.runtime.errors import InputError


@runtime_checkable
class Reader(Protocol):
    """Reads the pictures of frames."""

    def read(self, frames: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b h w"]:
        """Return the frames' pictures, all of one size."""


Fans = Callable[[Int[np.ndarray, " b"]], Float32[np.ndarray, "b 6"]]
"""Reads the fans of frames, as `FrameReader.fans`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """This host's rows of one batch.

    Attributes:
      step: the training step.
      arrays: the input of the devices: `image` uint8 [b, h, w], or [b, 2, h, w] if the second view is of another
        frame; `label` int32 [b] or [b, m], UNLABELLED for a unique group; `row` int32 [b], the row in the global
        batch; `frame` int32 [b, 2], the frames of its two views; if they are asked for, `fans` float32 [b, 6], or
        [b, 2, 6] where images have two frames.
      composition: statistics of the global batch, for the metrics.
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
    fans: Fans | None = None,
) -> Iterator[Batch]:
    """Yield the batches of steps `start` to `stop`, with the rows of this process only.

    An element of the Grain dataset is a whole batch, so that neither the number of threads nor of processes can change
    its composition (Grain's own batching would).

    Args:
      plan: which frames are in which batch.
      reader: reads the frames of the plan.
      labels: frames of one label attract each other; UNLABELLED ones only their own views.
      scans: scan of each frame, for the composition.
      start: first step.
      stop: the step after the last.
      process: this process among `processes`.
      processes: number of processes that share the batch.
      threads: threads that read and decode.
      read_ahead: batches held ready.
      fans: reads the fans of the frames, if the views need them.

    Raises:
      InputError: the batch does not divide by the number of processes.
    """
    mine = _rows_of(process, processes, plan.batch_size)

    def load(step: int) -> Batch:
        frames = plan.frames(step)
        partners = plan.partners(step, frames) if plan.pairs == "cross_scan" else frames

        def of_views(read: Callable[[Int[np.ndarray, " b"]], np.ndarray]) -> np.ndarray:
            first = read(frames[mine])
            return np.stack([first, read(partners[mine])], axis=1) if plan.pairs == "cross_scan" else first

        arrays = {
            "image": of_views(reader.read),
            "label": labels[frames[mine]].astype(np.int32),
            "row": mine,
            "frame": np.stack([frames, partners], axis=1)[mine].astype(np.int32),
        }
        if fans is not None:
            arrays["fans"] = of_views(fans)
        return Batch(step, arrays, composition(labels[frames], np.stack([scans[frames], scans[partners]], axis=1)))

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
    """Yield batches of frames with their targets.

    Args:
      plan: which frames are in which batch.
      columns: name of an array -> function that reads it for frames, such as `{"image": reader.read}`; `row` is added.
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
        raise InputError(f"The batch size must be divisible by the {processes} processes; got {batch_size}.")
    share = batch_size // processes
    return np.arange(process * share, (process + 1) * share, dtype=np.int32)


def _read_ahead(load: Callable[[int], Batch], start: int, stop: int, threads: int, read_ahead: int) -> Iterator[Batch]:
    if start >= stop:
        return
    # The first is read alone: a step is compiled for it, and threads that read ahead would delay that.
    yield load(start)
    dataset: Any = grain.MapDataset.range(start + 1, stop).map(load)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=read_ahead)
    yield from dataset.to_iter_dataset(options)
