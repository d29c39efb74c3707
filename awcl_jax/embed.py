"""The encoder of a finished run, as a function from frames to features."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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
      [b, f] in float32. Frames are resized as in training.

    Raises:
      InputError: there is no such run or checkpoint; from the function, if frames are of another shape or range.
    """
    path = Path(checkpoint)
    step = int(path.name) if path.name.isdigit() and path.parent.name == "checkpoints" else None
    run = path if step is None else path.parents[1]
    if not (run / run_folder.CONFIG_FILE).is_file():
        raise InputError(f"{run} is no folder of a run: {run_folder.CONFIG_FILE} is missing.")
    config = configuration.from_dict(run_folder.read_json(run / run_folder.CONFIG_FILE).get("config", {}))
    model = pretrain.make_model(config)
    variables = _restore(run, step, pretrain.initial_state(model, pretrain.make_optimiser(config)[1], seed=config.seed))
    encode = pretrain.make_encode(model, configuration.augmentation(config))

    def features(frames: np.ndarray) -> Float[np.ndarray, "b f"]:
        return np.asarray(encode(variables, jnp.asarray(_as_read(frames, config.data.size))))

    return features


def _restore(run: Path, step: int | None, target: Any) -> Any:
    with Checkpoints(run) as checkpoints:
        step = checkpoints.latest_step if step is None else step
        if step is None or not (run / "checkpoints" / str(step)).is_dir():
            found = "none" if checkpoints.latest_step is None else f"up to step {checkpoints.latest_step}"
            raise InputError(
                f"{run} has no checkpoint {'' if step is None else f'of step {step}'} (there are: {found})."
            )
        state = checkpoints.restore(step, jax.device_put(target))
    return jax.device_put(state.variables)


def _as_read(frames: np.ndarray, size: int) -> np.ndarray:
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
    return np.stack([resize_frame(frame, size) for frame in frames])
