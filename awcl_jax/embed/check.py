"""What is checked before JAX is imported, which takes seconds: the encoder's folder, and the output's name."""

import os
from pathlib import Path

from awcl_jax.config.export_files import FUNCTION, WEIGHTS, is_export
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import CONFIG_FILE, no_checkpoint, read_json, split_checkpoint

SUFFIXES = (".parquet", ".npz", ".csv")
"""Of files of features."""

_KINDS = "Use the folder of a pretraining run, of one of its checkpoints (RUN/checkpoints/500), or of awcl_jax.export."


def require_encoder(path: str | os.PathLike[str]) -> None:
    """Check that a folder looks like a run, a checkpoint or an export; an address is checked when it is read.

    Raises:
      InputError: it does not exist, is a file, is of another kind, or has no checkpoint.
    """
    if "://" in os.fspath(path):
        return
    folder = Path(path).expanduser()
    if is_export(folder):
        if not any((folder / name).is_file() for name in (WEIGHTS, FUNCTION)):
            raise InputError(
                f"{folder} has neither {WEIGHTS} nor {FUNCTION}. Export as safetensors, or use the run itself."
            )
        return
    run, step = split_checkpoint(folder)
    if not (run / CONFIG_FILE).is_file():
        why = f"{CONFIG_FILE} not found" if run.is_dir() else "it is a file" if run.exists() else "it does not exist"
        raise InputError(f"{run} is not a run folder: {why}. {_KINDS}")
    config = read_json(run / CONFIG_FILE).get("config")
    if isinstance(config, dict) and "task" in config:
        raise InputError(f"{run} is a downstream run, whose encoder is not read. {_KINDS}")
    steps = [int(file.name) for file in (run / "checkpoints").glob("*") if file.name.isdecimal()]
    if not steps or step not in (None, *steps):
        raise no_checkpoint(run, step, latest=max(steps, default=None))


def is_encoder(folder: Path) -> bool:
    """Return whether a folder is a run or an export, which is not a source of frames."""
    return (folder / CONFIG_FILE).is_file() or is_export(folder)
