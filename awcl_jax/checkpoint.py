"""Checkpoints of a run, by Orbax: written in the background, the latest and the best kept.

The only module that knows Orbax. A checkpoint holds the state of training; what it belongs to (configuration,
fingerprint of the data) stands in the run's folder.
"""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

_LATEST_KEPT = 2
_OVERHEAD = 2**20  # bytes that a checkpoint takes beside its arrays, generously


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Use as a context manager: leaving it waits until the last checkpoint is on disk.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Open the run's checkpoints, or begin with none; with `read_only`, leave a run that is going on alone."""
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(_LATEST_KEPT),
                policies.BestN(get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._folder = (workdir / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep,
                best_fn=lambda m: m["score"],
                # A folder without its final name may be what the run is writing this moment.
                cleanup_tmp_directories=not read_only,
                create=not read_only,
            ),
        )

    def save(self, step: int, state: Any, *, score: float | None = None) -> None:
        """Write the state after `step` steps, in the background; `score` (higher is better) may make it the best.

        Raises:
          OSError: the disk is full, now or when the checkpoint before was written.
        """
        self._check_room(state)
        with self._full_disk_in_words():
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
                metrics=None if score is None else {"score": score},
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

    def restore(self, step: int, target: Any) -> Any:
        """The state saved at `step`, with the shapes, types and placement of `target`."""
        # Without a target on the wanted devices Orbax would look for those that the checkpoint was written from.
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args)["state"]

    def restore_variables(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """Of the state saved at `step` only what `TrainState.variables` gives, as `target`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=restore_args, partial_restore=True)
        return self._manager.restore(step, args=ocp.args.Composite(state=args))["state"]

    def close(self) -> None:
        """Wait for the last write, then let go."""
        with self._full_disk_in_words():
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_room(self, state: Any) -> None:
        # Asked beforehand, because Orbax's threads print a page of tracebacks when they run into it.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _OVERHEAD
        if shutil.disk_usage(self._folder).free < needed:
            raise self._no_room()

    def _no_room(self) -> OSError:
        step = self.latest_step
        kept = "there is none yet" if step is None else f"the last one is of step {step}"
        message = f"No space left for a checkpoint, {kept}; make room and start the same command again"
        return OSError(errno.ENOSPC, message, str(self._folder))

    @contextlib.contextmanager
    def _full_disk_in_words(self) -> Iterator[None]:
        """Tell a full disk as the operating system does; TensorStore has a ValueError of many lines for it."""
        try:
            yield
        except ValueError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
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
