"""The encoder of a run, or of its export, as trained."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from awcl_jax.config import build
from awcl_jax.config.fields import augmentation, from_dict
from awcl_jax.config.pretraining import default_config, validate
from awcl_jax.data.reader import resize_frame
from awcl_jax.embed.exported import DESCRIPTION, read_export
from awcl_jax.evaluate.encode import FrozenEncoder, make_encode
from awcl_jax.runtime.bucket import on_bucket
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import require_plain_tree
from awcl_jax.runtime.hub import on_hub
from awcl_jax.train import initial_state as first_state
from awcl_jax.train import run_folder
from awcl_jax.train.checkpoint import Checkpoints
from awcl_jax.train.workdir import fetch_run


def as_function(frozen: FrozenEncoder) -> Callable[[np.ndarray], Float[np.ndarray, "b f"]]:
    """Return an encoder as a function of frames of any size, see `awcl_jax.embed.load_encoder`."""

    def features(frames: np.ndarray) -> Float[np.ndarray, "b f"]:
        as_read = _as_read(frames, frozen.frame_size, mask_overlays=frozen.mask_overlays)
        return np.asarray(frozen.encode(frozen.variables, jnp.asarray(as_read)))

    return features


def open_encoder(path: str | os.PathLike[str]) -> FrozenEncoder:
    """Open the encoder of a run, a checkpoint, or an exported folder; on a bucket or the hub, too.

    Raises:
      InputError: there is no such run, checkpoint or export.
    """
    folder = fetch_run(path)
    frozen = read_export(folder) if (folder / DESCRIPTION).is_file() else _of_run(folder)
    if not on_hub(path) and not on_bucket(path):
        return frozen
    # A local copy: the origin is the folder on the bucket or the hub.
    return dataclasses.replace(frozen, origin=frozen.origin.replace(str(folder), os.fspath(path).rstrip("/")))


def _of_run(folder: Path) -> FrozenEncoder:
    run, step = find_checkpoint(folder)
    checkpoint = run / "checkpoints" / str(step)
    config, variables = load_run(checkpoint)
    encode = make_encode(build.make_model(config), augmentation(config))
    origin = str(checkpoint.resolve())
    return FrozenEncoder(encode, variables, config.data.size, origin, mask_overlays=config.data.mask_overlays)


def load_run(checkpoint: str | os.PathLike[str]) -> tuple[Any, PyTree]:
    """Load the configuration of a run and the variables of its model; argument and errors as in `find_checkpoint`."""
    run, step = find_checkpoint(checkpoint)
    config = read_config(run)
    target = first_state.shapes_of(build.make_model(config))
    with Checkpoints(run, read_only=True) as checkpoints:
        return config, checkpoints.restore_variables(step, target)


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


def find_checkpoint(checkpoint: str | os.PathLike[str]) -> tuple[Path, int]:
    """Return the folder of a run and the step of its checkpoint.

    Args:
      checkpoint: folder of a run (its latest checkpoint), or of one of its checkpoints (`RUN/checkpoints/1000`);
        from a bucket, a copy is made.

    Raises:
      InputError: there is no such run or checkpoint, or a link is in the run's folder.
    """
    path = fetch_run(checkpoint)
    step = int(path.name) if path.name.isdigit() and path.parent.name == "checkpoints" else None
    run = path if step is None else path.parents[1]
    if not (run / run_folder.CONFIG_FILE).is_file():
        raise InputError(f"{run} is not a run folder: {run_folder.CONFIG_FILE} not found.")
    # What is made of a run is passed on: a link could add any file of this machine.
    require_plain_tree(run, links=False)
    with Checkpoints(run, read_only=True) as checkpoints:
        latest = checkpoints.latest_step
    asked = latest if step is None else step
    if asked is None or not (run / "checkpoints" / str(asked)).is_dir():
        found = "none" if latest is None else f"up to step {latest}"
        raise InputError(f"{run} has no checkpoint{'' if step is None else f' of step {step}'} (available: {found}).")
    return run, asked


def _as_read(frames: np.ndarray, size: int, *, mask_overlays: bool) -> np.ndarray:
    """Return frames as in training: uint8, square."""
    if frames.ndim == 4 and frames.shape[-1] == 1:
        frames = frames[..., 0]
    if frames.ndim != 3:
        raise InputError(f"Frames must be grey, [b, h, w] or [b, h, w, 1]; got {frames.shape}.")
    if np.issubdtype(frames.dtype, np.floating):
        if frames.size and not 0 <= frames.min() <= frames.max() <= 1:
            raise InputError(f"Frames as floats must be from 0 to 1; got {frames.min()} to {frames.max()}.")
        frames = np.round(frames * 255).astype(np.uint8)
    if frames.dtype != np.uint8:
        raise InputError(f"Frames must be uint8, or floats from 0 to 1; got {frames.dtype}.")
    return np.stack([resize_frame(frame, size, mask_overlays=mask_overlays) for frame in frames])
