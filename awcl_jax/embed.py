"""The encoder of a finished run, as a function from frames to features."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from awcl_jax import config as configuration
from awcl_jax import pretrain, run_folder
from awcl_jax.checkpoint import Checkpoints
from awcl_jax.data.frames import resize_frame
from awcl_jax.errors import InputError

Encoder = Callable[[np.ndarray], Float[np.ndarray, "b f"]]


def load_encoder(checkpoint: str | os.PathLike[str]) -> Encoder:
    """The encoder of a run, with its preprocessing.

    Example:
        encode = load_encoder("runs/20260101-120000-fine")
        features = encode(frames)

    Args:
      checkpoint: folder of a run, for its latest checkpoint, or of one checkpoint in it (`RUN/checkpoints/1000`).

    Returns:
      A function of grey frames, [b, h, w] or [b, h, w, 1], as uint8 from 0 to 255 or as floats from 0 to 1, to features
      [b, f] in float32. Frames are resized, and overlays masked, as in training.

    Raises:
      InputError: there is no such run or checkpoint; from the function, if frames are of another shape or range.
    """
    config, variables = load_run(checkpoint)
    encode = pretrain.make_encode(pretrain.make_model(config), configuration.augmentation(config))

    def features(frames: np.ndarray) -> Float[np.ndarray, "b f"]:
        as_read = _as_read(frames, config.data.size, mask_overlays=config.data.mask_overlays)
        return np.asarray(encode(variables, jnp.asarray(as_read)))

    return features


def load_run(checkpoint: str | os.PathLike[str]) -> tuple[Any, PyTree]:
    """Configuration of a run, and the variables of its whole model; argument and errors as in `load_encoder`."""
    run, step = find_checkpoint(checkpoint)
    config = configuration.from_dict(run_folder.read_json(run / run_folder.CONFIG_FILE).get("config", {}))
    target = pretrain.initial_variables(pretrain.make_model(config), seed=config.seed)
    with Checkpoints(run, read_only=True) as checkpoints:
        return config, checkpoints.restore_variables(step, jax.device_put(target))


def find_checkpoint(checkpoint: str | os.PathLike[str]) -> tuple[Path, int]:
    """Folder of the run and step of the checkpoint that are meant; argument and errors as in `load_encoder`."""
    path = Path(checkpoint)
    step = int(path.name) if path.name.isdigit() and path.parent.name == "checkpoints" else None
    run = path if step is None else path.parents[1]
    if not (run / run_folder.CONFIG_FILE).is_file():
        raise InputError(f"{run} is no folder of a run: {run_folder.CONFIG_FILE} is missing.")
    with Checkpoints(run, read_only=True) as checkpoints:
        latest = checkpoints.latest_step
    asked = latest if step is None else step
    if asked is None or not (run / "checkpoints" / str(asked)).is_dir():
        found = "none" if latest is None else f"up to step {latest}"
        raise InputError(f"{run} has no checkpoint{'' if step is None else f' of step {step}'} (there are: {found}).")
    return run, asked


def _as_read(frames: np.ndarray, size: int, *, mask_overlays: bool) -> np.ndarray:
    """Frames as the training's reader gives them: uint8, square."""
    if frames.ndim == 4 and frames.shape[-1] == 1:
        frames = frames[..., 0]
    if frames.ndim != 3:
        raise InputError(f"Frames are grey, [b, h, w] or [b, h, w, 1]; got {frames.shape}.")
    if np.issubdtype(frames.dtype, np.floating):
        if frames.size and not 0 <= frames.min() <= frames.max() <= 1:
            raise InputError(f"Frames as floats are from 0 to 1; got {frames.min()} to {frames.max()}.")
        frames = np.round(frames * 255).astype(np.uint8)
    if frames.dtype != np.uint8:
        raise InputError(f"Frames are uint8, or floats from 0 to 1; got {frames.dtype}.")
    return np.stack([resize_frame(frame, size, mask_overlays=mask_overlays) for frame in frames])
