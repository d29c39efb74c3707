"""Initial weights of a downstream run's encoder."""

import math
from typing import Any

from jaxtyping import PyTree

from awcl_jax.embed import load
from awcl_jax.models.weights import FILES, load_torch_resnet
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import run_folder

RANDOM = "random"


def initial_encoder(
    init: str, *, arch: str, width_factor: float, strides: str, mean: float, std: float
) -> dict[str, PyTree] | None:
    """Return the variables to start the encoder from.

    Args:
      init: `random`; the folder of a pretraining run, for its latest checkpoint, or of one checkpoint in it
        (`RUN/checkpoints/1000`), on this host or in a bucket; or a file of PyTorch weights (see
        `models.weights.FILES`), read by `models.weights.load_torch_resnet`.
      arch: of the configured encoder.
      width_factor: its multiplier of the number of features in every layer.
      strides: where it strides, if a ResNet-50.
      mean: of the grey, by which frames are normalised.
      std: deviation of the grey.

    Returns:
      `params` and `batch_stats` of the encoder; None for random weights.

    Raises:
      InputError: the run, checkpoint or file does not exist, or has another architecture or normalisation.
    """
    if init == RANDOM:
        return None
    if init.lower().endswith(FILES):
        return load_torch_resnet(init, arch, mean=mean, std=std, width_factor=width_factor)
    return _from_run(init, arch=arch, width_factor=width_factor, strides=strides, mean=mean, std=std)


def _from_run(init: str, **configured: Any) -> dict[str, PyTree]:
    run, step = load.find_checkpoint(init)
    if "task" in run_folder.read_run_config(run)["config"]:
        raise InputError(f"{run} is a downstream run. Set config.encoder.init to a pretraining run.")
    config = load.read_config(run)
    pretrained = {
        "arch": config.model.arch,
        "width_factor": config.model.width_factor,
        "strides": config.model.strides,
        "mean": config.augment.mean,
        "std": config.augment.std,
    }
    differing = {name: value for name, value in configured.items() if not _same(pretrained[name], value)}
    if differing:
        part = {"mean": "augment", "std": "augment"}
        values = ", ".join(f"{name} {pretrained[name]} and not {value}" for name, value in differing.items())
        flags = " ".join(f"--config.{part.get(name, 'model')}.{name}={pretrained[name]}" for name in differing)
        raise InputError(f"The encoder of {init} has {values}, as configured. Add {flags}.")
    _, variables = load.load_run(run / "checkpoints" / str(step))
    return {name: tree["encoder"] for name, tree in variables.items()}


def _same(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) else math.isclose(one, other, rel_tol=1e-9)
