"""The encoder of a run, or of its export, as trained."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from awcl_jax.config import build
from awcl_jax.config.export_files import is_export
from awcl_jax.config.fields import augmentation
from awcl_jax.config.trained import find_checkpoint, read_config, read_variables
from awcl_jax.data import about
from awcl_jax.data.square import Square
from awcl_jax.embed.exported import read_export
from awcl_jax.embed.frames import Frames, as_grey, require_colours
from awcl_jax.evaluate.encode import FrozenEncoder, make_encode
from awcl_jax.runtime.bucket import on_bucket
from awcl_jax.runtime.hub import on_hub
from awcl_jax.train import run_folder
from awcl_jax.train.workdir import fetch_run


def as_function(frozen: FrozenEncoder, *, colours: str | None = None) -> Callable[[Frames], Float[np.ndarray, "b f"]]:
    """Return an encoder as a function of frames of any size, see `awcl_jax.embed.load_encoder`."""
    require_colours(colours)

    def features(frames: Frames) -> Float[np.ndarray, "b f"]:
        squares = [frozen.square.of(grey) for grey in as_grey(frames, colours=colours)]
        return np.asarray(frozen.encode(frozen.variables, jnp.asarray(np.stack(squares))))

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
    config = read_config(run)
    encode = make_encode(build.make_model(config), augmentation(config))
    square = Square(config.data.size, run_folder.read_aspect(run), config.data.mask_overlays)
    origin = str((run / "checkpoints" / str(step)).resolve())
    labelled, *_ = about.of_run({}, run_folder.read_run_config(run).get("datasets"))
    return FrozenEncoder(encode, read_variables(run, step, config), square, origin, labelled.region)
