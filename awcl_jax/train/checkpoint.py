"""Checkpoints of a run, by Orbax: written in the background, the two latest and the best kept.

The only module that imports Orbax. Every process of a run has all arrays; only the first writes them, and each reads
them itself, from the same folder or from a copy of it on its host. A checkpoint holds the training state and a checksum
of each array, to detect damage; the run's configuration and the fingerprint of its data are in the run's folder.
"""

import contextlib
import errno
import math
import os
import re
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
from awcl_jax.runtime.errors import InputError, first_line, of_device_memory
from awcl_jax.runtime.files import lack_of_room

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
WHOLE = "_CHECKPOINT_METADATA"
"""The file without which a folder is not a checkpoint."""

_LATEST_KEPT = 2
_CHECKSUMS = "crc32"
_NO_ROOM = (errno.ENOSPC, errno.EFBIG)
_NOT_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in errors of TensorStore
_FILES = 64  # of a checkpoint, a generous estimate
_OVERHEAD = 2**20  # bytes of a checkpoint beside its arrays, a generous estimate
# Orbax gives a write up after some minutes of the wall clock, which pass at once if a computer sleeps, or its clock is
# set, in the middle of one. It waits for folders made in the background in the same way, and no option changes that.
_IN_BACKGROUND = ocp.AsyncOptions(timeout_secs=250 * 365 * 24 * 3600, create_directories_asynchronously=False)


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Use as a context manager: leaving it waits until the last checkpoint is on disk.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Open the run's checkpoints, if any; with `read_only`, do not disturb a run that is still training.

        Raises:
          InputError: the metadata of a checkpoint, such as its score, is damaged.
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
            # A folder without its final name may be a checkpoint that the run is writing now.
            cleanup_tmp_directories=writes,
            create=False,
            async_options=_IN_BACKGROUND,
            # No process waits for another here: `awcl_jax.runtime.multihost` synchronises them where needed.
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
                f"The checkpoints in {self._folder} cannot be opened: the metadata of one is damaged "
                f"({first_line(error)[:200]}). Move the newest one away, or restore it from a copy."
            ) from error

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Write the state after `step` steps, in the background; `score` (higher is better) may make it the best.

        A NaN is not a score. Only the first process writes; others do nothing.

        Raises:
          OSError: the disk is full, now or while the previous checkpoint was written, or is read-only, or files are
            limited to fewer bytes (RLIMIT_FSIZE).
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
        """Step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest score; None if none has a score."""
        return self._manager.best_step()

    def newest(self, target: Any, *, warn: Callable[[str], None]) -> tuple[int, Any] | None:
        """Return the newest step whose state is intact, and that state as `target`; None without any checkpoint.

        Later checkpoints are damaged: `warn` gets a line for each, and they are moved to `workdir/damaged`, so that the
        run can save these steps again. Every process of a run calls it and gets the same result.

        Raises:
          InputError: there are checkpoints, but none is intact; none is moved.
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
                warn(f"{why} Using the previous checkpoint.")
            return step, state
        if damages:
            raise InputError(
                f"None of the {len(damages)} checkpoints in {self._folder} can be used. {next(iter(damages.values()))} "
                "Restore one from a copy, or start over with another --workdir."
            )
        return None

    def restore(self, step: int, target: Any) -> Any:
        """Return the state saved at `step`, with the shapes, types and placement of `target`.

        Raises:
          InputError: the checkpoint is damaged, or of another kind of state.
          OSError, MemoryError, RuntimeError: it may not be read, or there is no room for it; it may be whole.
        """
        # Without a target that names devices, Orbax would look for those that wrote the checkpoint.
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        return self._read(step, ocp.args.StandardRestore(abstract))

    def restore_variables(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Return only the `TrainState.variables` of the state saved at `step`, as `target`.

        Raises:
          InputError: as `restore`.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._read(step, ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True))

    def _read(self, step: int, how: ocp.args.CheckpointArgs) -> Any:
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=how))["state"]
            metadata = self._manager.metadata(step)
        except Exception as error:  # of Orbax, TensorStore or JSON, which raise many kinds
            if _lacks(error):
                raise
            raise self._damage(step, f"it cannot be read: {first_line(error)[:200]}") from error
        custom = metadata.custom_metadata or {}
        if not custom and metadata.commit_timestamp_nsecs is not None:
            return state  # written by a version without checksums
        known = custom.get(_CHECKSUMS)
        known = known if isinstance(known, dict) else {}
        if wrong := [name for name, value in checksums(state).items() if known.get(name) != value]:
            raise self._damage(step, f"{len(wrong)} of its arrays differ from what was written, {wrong[0]} among them")
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
        """Wait for the last write, then close."""
        with self._full_disk_in_words():
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_room(self, state: Any) -> None:
        # Checked first, because Orbax's threads print a page of tracebacks when a write fails.
        if not os.access(self._folder, os.W_OK):
            raise OSError(errno.EROFS, f"A checkpoint cannot be written ({self._kept()})", str(self._folder))
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        # Nearly all of a state may be in one file.
        lack = lack_of_room(self._folder, needed=needed, files=_FILES, largest=needed - _OVERHEAD)
        if lack is not None:
            raise self._no_room(lack.errno, lack.strerror or "")

    def _no_room(self, code: int | None, reason: str = "") -> OSError:
        what, fix = ("No space left", "Free space") if code == errno.ENOSPC else ("File too large", "Raise the limit")
        message = (
            f"{what} for a checkpoint ({reason and f'{reason}; '}{self._kept()}). {fix} and rerun the same command"
        )
        return OSError(code, message, str(self._folder))

    def _kept(self) -> str:
        step = self.latest_step
        return "there is none yet" if step is None else f"the last one is of step {step}"

    @contextlib.contextmanager
    def _full_disk_in_words(self) -> Iterator[None]:
        """Raise an OSError for a disk that is full or fails, where TensorStore raises a ValueError of many lines."""
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise self._no_room(error.errno) from error
        except ValueError as error:
            found = _OS_ERROR.search(str(error))
            code = errno.ENOSPC if "RESOURCE_EXHAUSTED" in str(error) else int(found[1]) if found else None
            if code is None:
                raise
            if code in _NO_ROOM:
                raise self._no_room(code) from error
            message = f"{os.strerror(code)}: a checkpoint could not be written ({self._kept()}). Check the disk"
            raise OSError(code, f"{message} and rerun the same command", str(self._folder)) from error

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; after ctrl-C without waiting."""
        if kind is not KeyboardInterrupt:
            self.close()


def _score(metrics: Any) -> float:
    """Return the score in a checkpoint's metadata; if that is damaged or NaN, a score that is never the best."""
    score = metrics.get("score") if isinstance(metrics, dict) else None
    return float(score) if isinstance(score, int | float) and not math.isnan(score) else -math.inf


def is_temporary(name: str) -> bool:
    """Return whether a folder of this name is a checkpoint, or a part of one, that is still being written."""
    return ocp.utils.TMP_DIR_SUFFIX in name


def checksums(state: PyTree) -> dict[str, int]:
    """Return the CRC-32 of the bytes of each array, by its path, such as `params/encoder/stem/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(np.asarray(leaf).tobytes())
        for path, leaf in leaves
    }


def _lacks(error: Exception) -> bool:
    """Return whether the process lacks memory, files or a permission, which says nothing of what it reads."""
    if isinstance(error, OSError):
        return error.errno in _NOT_OF_THE_FILE
    return isinstance(error, MemoryError) or of_device_memory(error)
