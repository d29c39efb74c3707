"""A run's metrics in Weights & Biases, beside `metrics.jsonl`, if `train.logger` asks for it.

The only module that imports its client, an extra, and only when a run begins to log. What is sent are the numbers of
`metrics.jsonl` and the settings that decide them: no path, no picture, nothing that is printed, and nothing about the
machine or its user. A logger that fails is reported in one line and switched off; it never ends a run.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from awcl_jax.runtime.errors import InputError, first_line
from awcl_jax.train.run_folder import read_json, write_json

LOGGERS = ("none", "wandb")
"""Values of `train.logger`."""

ID_FILE = "wandb.json"
"""In the run's folder: the id of the W&B run, which a resumed run continues."""

_PROJECT = "awcl_jax"  # unless WANDB_PROJECT names another
_SECONDS = 30  # to reach the server at the start, and to send what is left at the end


@runtime_checkable
class Writer(Protocol):
    """What writes a run's metrics."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a step's numbers."""

    def sync(self) -> None:
        """Wait until all numbers are on disk."""


def require(logger: str) -> None:
    """Check that a logger's package is installed, before anything is computed.

    Raises:
      InputError: it is not.
    """
    if logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise InputError(
            "config.train.logger='wandb' needs the package wandb. Run pip install 'awcl_jax[wandb]', or leave "
            "config.train.logger unset."
        )


class WandbLogger:
    """A writer that also sends what it writes to Weights & Biases.

        with WandbLogger(metrics, workdir, name="fine", fields={}, warn=print) as writer:
            writer.write(1, {"loss": 4.2})

    The id of the W&B run is in the run's folder, so that a resumed run continues it. Each row has the number `step`,
    which is the horizontal axis of every chart. A resumed run sends the steps after its last checkpoint again, with the
    same numbers: the client of a killed process may not have sent them.

    W&B's own files are in `wandb/` in the working folder (`WANDB_DIR`), and not in the folder of the run, where the
    links among them would be refused.

    Args:
      writer: writes the files, first.
      workdir: folder of the run.
      name: of the run, as others see it; `WANDB_NAME` overrides it.
      fields: settings of the run to show, without paths.
      warn: called with a line about what failed.
    """

    def __init__(
        self,
        writer: Writer,
        workdir: Path,
        *,
        name: str,
        fields: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._writer, self._warn = writer, warn
        self._run: Any = None
        try:
            self._run = _begin(_identity(workdir / ID_FILE), name=name, fields=fields)
        except Exception as error:  # of the client or the network: any kind
            self._give_up(error)

    @property
    def address(self) -> str:
        """The page of the run; empty if nothing is sent."""
        return "" if self._run is None or self._run.offline else str(self._run.url)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a step's numbers, and send them.

        Raises:
          OSError: the file of metrics cannot be written.
        """
        self._writer.write(step, values)
        if self._run is None:
            return
        try:
            self._run.log({"step": int(step), **{name: float(value) for name, value in values.items()}})
        except Exception as error:
            self._give_up(error)

    def sync(self) -> None:
        """Wait until the files are on disk; what is sent is not waited for.

        Raises:
          OSError: as `write`.
        """
        self._writer.sync()

    def _give_up(self, error: Exception) -> None:
        self._run = None
        self._warn(
            f"Weights & Biases gets no more metrics of this run ({first_line(error)[:200]}). They are all "
            "in metrics.jsonl."
        )

    def __enter__(self) -> "WandbLogger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=0 if kind is None else 1)
        except Exception as problem:
            self._give_up(problem)


def _identity(file: Path) -> str:
    """Return the id of the W&B run, drawn at the first start of the run."""
    if not file.is_file():
        write_json(file, {"id": uuid.uuid4().hex})
    return str(read_json(file)["id"])


def _begin(identity: str, *, name: str, fields: Mapping[str, Any]) -> Any:
    """Start or continue a run of W&B.

    Raises:
      Exception: what the client raises; InputError if nobody is signed in, where the client would ask.
    """
    import wandb

    if wandb.setup().settings.mode not in ("offline", "disabled") and not wandb.login(prompt=False, verify=False):
        raise InputError("not signed in: run `wandb login`, or set WANDB_MODE=offline")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=os.environ.get("WANDB_NAME", name),
        id=identity,
        resume="allow",
        config=json.loads(json.dumps(dict(fields))),
        reinit="create_new",  # several runs of one process, as in a study
        settings=wandb.Settings(
            # Printed lines, arguments, paths, the host's and the user's names stay here.
            console="off",
            host="",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            silent=True,
            init_timeout=_SECONDS,
            finish_timeout=_SECONDS,
        ),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run
