"""A pretraining run that has trained: its configuration, checkpoints and the variables in them."""

import os
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from awcl_jax.config import build
from awcl_jax.config.fields import from_dict
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import require_plain_tree
from awcl_jax.train import initial_state as first_state
from awcl_jax.train import run_folder
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.workdir import fetch_run


def read_variables(run: Path, step: int, config: Any) -> PyTree:
    """Return the variables of a run's model at a step; run and step as of `find_checkpoint`, config of `read_config`.

    Raises:
      InputError: the checkpoint is damaged, or of another model.
    """
    target = first_state.shapes_of(build.make_model(config))
    with Checkpoints(run, read_only=True) as checkpoints:
        return checkpoints.restore_variables(step, target)


def read_config(run: Path) -> Any:
    """Read the configuration of a pretraining run.

    Raises:
      InputError: the folder has no such configuration, or one of another version.
      OSError: it cannot be read.
    """
    try:
        config = from_dict(run_folder.read_run_config(run)["config"], default_config())
        validate(config)
    except InputError as error:
        raise InputError(f"{run} is not a pretraining run of this version: {error}") from None
    return config


def _no_run(folder: Path) -> str:
    why = f"{run_folder.CONFIG_FILE} not found" if folder.is_dir() else "it does not exist"
    return f"{folder} is not a run folder: {why}. Use the --workdir of a run."


def find_checkpoint(checkpoint: str | os.PathLike[str]) -> tuple[Path, int]:
    """Return the folder of a run and the step of its checkpoint.

    Args:
      checkpoint: folder of a run (its latest checkpoint), or of one of its checkpoints (`RUN/checkpoints/1000`);
        from a bucket, a copy is made.

    Raises:
      InputError: there is no such run or checkpoint, or a link is in the run's folder.
    """
    run, step = run_folder.split_checkpoint(fetch_run(checkpoint))
    if not (run / run_folder.CONFIG_FILE).is_file():
        raise InputError(_no_run(run))
    # What is made of a run is passed on: a link could add any file of this machine.
    require_plain_tree(run, links=False)
    with Checkpoints(run, read_only=True) as checkpoints:
        latest = checkpoints.latest_step
    asked = latest if step is None else step
    if asked is None or not (run / "checkpoints" / str(asked)).is_dir():
        raise run_folder.no_checkpoint(run, step, latest=latest)
    return run, asked
