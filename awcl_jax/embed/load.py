"""The encoder of a run, or of its export, as trained."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from awcl_jax.config import build
from awcl_jax.config.exported import is_export
from awcl_jax.config.fields import augmentation
from awcl_jax.config.trained import find_checkpoint, load_run
from awcl_jax.data.reader import resize_frame
from awcl_jax.embed.exported import read_export
from awcl_jax.evaluate.encode import FrozenEncoder, make_encode
from awcl_jax.runtime.bucket import on_bucket
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.hub import on_hub
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
    frozen = read_export(folder) if is_export(folder) else _of_run(folder)
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
