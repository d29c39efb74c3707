"""Checkpoints of a run, by Orbax: written in the background, the two latest and the best kept.

The only module that knows Orbax. The first process of a run, which has all arrays as every process does, writes them
alone; each reads them for itself, from the same folder or from a copy of it on its host. A checkpoint holds the state
of training, and the checksum of each of its arrays, by which damage is noticed; what it belongs to (configuration,
fingerprint of the data) stands in the run's folder.
"""

import contextlib
import errno
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as policies

from awcl_jax.runtime import multihost
from awcl_jax.runtime.errors import InputError, first_line

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
WHOLE = "_CHECKPOINT_METADATA"
"""Of the folder of a checkpoint the file without which it is none."""

_LATEST_KEPT = 2
_CHECKSUMS = "crc32"
_OVERHEAD = 2**20  # bytes that a checkpoint takes beside its arrays, generously


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Use as a context manager: leaving it waits until the last checkpoint is on disk.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Open the run's checkpoints, or begin with none; with `read_only`, leave a run that is going on alone.

        Raises:
          InputError: what is noted of a checkpoint, such as its score, is damaged.
          OSError: they cannot be read.
        """
        me = jax.process_index()
        writes = multihost.first() and not read_only
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(_LATEST_KEPT),
                policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._folder = (workdir / FOLDER).absolute()
        if writes:
            self._folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_score,
            # A folder without its final name may be what the run is writing this moment.
            cleanup_tmp_directories=writes,
            create=False,
            # Nobody waits for another: what has to be done together is done so by `processes`.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
            ),
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError:
            raise
        except Exception as error:  # it reads the scores of all checkpoints
            raise InputError(
                f"The checkpoints in {self._folder} cannot be told apart, for what is noted of one is damaged "
                f"({first_line(error)[:200]}): move the newest one away, or restore it from a copy."
            ) from error

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Write the state after `step` steps, in the background; `score` (higher is better) may make it the best.

        A score that is NaN is none: nothing compares with it. Only the first process writes; in others nothing is done.

        Raises:
          OSError: the disk is full, now or when the checkpoint before was written, or may not be written to.
        """
        if not multihost.first():
            return
        self._check_room(state)
        state = jax.device_get(state)
        with self._full_disk_in_words():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=None if score is None or math.isnan(score) else {"score": score},
                custom_metadata={_CHECKSUMS: checksums(state)},
                force=True,
            )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None without any."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint of the highest score; None without any that has one."""
        return self._manager.best_step()

    def newest(self, target: Any, *, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """The newest step whose state is whole, and that state as `target`; None where no checkpoint is there.

        Those after it are damaged: `warn` gets a line for each, and they are moved to `workdir/damaged`, so that the
        run can save these steps again. Every process of a run calls it and gets the same.

        Raises:
          InputError: there are checkpoints, but none is whole; all stay where they are.
        """
        damages: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with multihost.all_or_none():
                    state = self.restore(step, target)
            except InputError as error:
                damages[step] = str(error)
                continue
            for damaged, why in damages.items():
                self._set_aside(damaged)
                warn(f"{why} Going back to the checkpoint before.")
            return step, state
        if damages:
            raise InputError(
                f"None of the {len(damages)} checkpoints in {self._folder} can be used. {next(iter(damages.values()))} "
                "Restore one from a copy, or begin anew with another --workdir."
            )
        return None

    def restore(self, step: int, target: Any) -> Any:
        """The state saved at `step`, with the shapes, types and placement of `target`.

        Raises:
          InputError: the checkpoint is damaged, or of something else.
        """
        # Without a target on the wanted devices Orbax would look for those that the checkpoint was written from.
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        return self._read(step, ocp.args.StandardRestore(abstract))

    def restore_variables(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Of the state saved at `step` only what `TrainState.variables` gives, as `target`.

        Raises:
          InputError: as `restore`.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._read(step, ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True))

    def _read(self, step: int, how: ocp.args.CheckpointArgs) -> Any:
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=how))["state"]
            about = self._manager.metadata(step)
        except Exception as error:  # Orbax, TensorStore and JSON raise whatever they do
            said = first_line(error)
            raise self._damage(step, f"it cannot be read: {said[:200]}") from error
        written = about.custom_metadata or {}
        if not written and about.commit_timestamp_nsecs is not None:
            return state  # of before there were checksums
        known = written.get(_CHECKSUMS)
        known = known if isinstance(known, dict) else {}
        if wrong := [name for name, value in checksums(state).items() if known.get(name) != value]:
            raise self._damage(step, f"{len(wrong)} of its arrays are not as written, {wrong[0]} among them")
        return state

    def _damage(self, step: int, why: str) -> InputError:
        return InputError(f"The checkpoint of step {step} in {self._folder} is damaged ({why}).")

    def _set_aside(self, step: int) -> None:
        with multihost.all_or_none():
            if multihost.first():
                folder = self._folder.with_name(DAMAGED_FOLDER)
                folder.mkdir(exist_ok=True)
                number = sum(file.name.split(".")[0] == str(step) for file in folder.iterdir())
                (self._folder / str(step)).rename(folder / (f"{step}.{number}" if number else str(step)))
        self._manager.reload()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk."""
        with self._full_disk_in_words():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last write, then let go."""
        with self._full_disk_in_words():
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_room(self, state: Any) -> None:
        # Asked beforehand, because Orbax's threads print a page of tracebacks when they run into it.
        if not os.access(self._folder, os.W_OK):
            raise OSError(errno.EROFS, f"A checkpoint cannot be written, {self._kept()}", str(self._folder))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        if shutil.disk_usage(self._folder).free < needed:
            raise self._no_room()

    def _no_room(self) -> OSError:
        message = f"No space left for a checkpoint, {self._kept()}; make room and start the same command again"
        return OSError(errno.ENOSPC, message, str(self._folder))

    def _kept(self) -> str:
        step = self.latest_step
        return "there is none yet" if step is None else f"the last one is of step {step}"

    @contextlib.contextmanager
    def _full_disk_in_words(self) -> Iterator[None]:
        """Tell a full disk as the operating system does; TensorStore has a ValueError of many lines for it."""
        try:
            yield
        except (OSError, ValueError) as error:
            full = error.errno == errno.ENOSPC if isinstance(error, OSError) else "RESOURCE_EXHAUSTED" in str(error)
            if not full:
                raise
            raise self._no_room() from error

    def __enter__(self) -> "Checkpoints":
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; at once where the user will not wait."""
        if kind is not KeyboardInterrupt:
            self.close()


def _score(metrics: Any) -> float:
    """What is noted of a checkpoint's score; where that is damaged or NaN, a score that is never the best."""
    score = metrics.get("score") if isinstance(metrics, dict) else None
    return float(score) if isinstance(score, int | float) and not math.isnan(score) else -math.inf


def is_temporary(name: str) -> bool:
    """Whether a folder of this name is that of a checkpoint, or of a part of one, that is being written."""
    return ocp.utils.TMP_DIR_SUFFIX in name


def checksums(state: PyTree) -> dict[str, int]:
    """The CRC-32 of the bytes of each array, by its place, as `params/encoder/stem/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(np.asarray(leaf).tobytes())
        for path, leaf in leaves
    }
