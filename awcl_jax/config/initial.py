"""The encoder that a run starts from: a run, one of its checkpoints, an export, or a file of PyTorch weights."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree
from ml_collections import ConfigDict

from awcl_jax.config import build, trained
from awcl_jax.config.export_files import is_export
from awcl_jax.config.exported import read_description, read_weights
from awcl_jax.models import encoders, vit_weights
from awcl_jax.models.vit import SIZES
from awcl_jax.models.weights import FILES
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import run_folder
from awcl_jax.train.workdir import fetch_run

RANDOM = "random"

_VIT = ("patch", "registers", "layer_scale", "pre_norm", "activation", "epsilon", "norm_after", "rotary")
# Of the fields that are not of the group `model`.
_GROUPS = {"mean": "augment", "std": "augment", **dict.fromkeys(_VIT, "model.vit")}


@dataclasses.dataclass(frozen=True, eq=False)
class Initial:
    """Variables that a run starts from.

    Attributes:
      variables: `params` and `batch_stats` -> module (`encoder`, and `projection` if it is loaded) -> its variables.
      source: where they are from, in words.
      aspect: how frames were made square for them, see `data.square`; None if that is unknown, of PyTorch weights.
    """

    variables: Mapping[str, Mapping[str, PyTree]]
    source: str
    aspect: str | None = None

    def describe(self, config: ConfigDict, *, aspect: str) -> dict[str, str]:
        """Return `source`, `loaded` and `new` in words: what a run of this configuration takes from it, and what not.

        Without an entry for batch statistics the network has none. If its frames had another aspect than the run's,
        there is a `warning`, one line with the fix.

        Args:
          config: of the run.
          aspect: of the run's frames.
        """
        statistics = " and batch statistics" if self.variables.get("batch_stats", {}).get("encoder") else ""
        loaded, new = [f"encoder (parameters{statistics})"], ["optimiser state", "learning-rate schedule"]
        if "task" in config:
            new.insert(0, "head")
        else:
            (loaded if "projection" in self.variables["params"] else new).insert(0, "projection head")
            if config.queue.size:
                new += ["momentum encoder (a copy of the encoder)", "queue"]
        said = {"source": self.source, "loaded": ", ".join(reversed(loaded)), "new": ", ".join(new)}
        if self.aspect not in (None, aspect):
            said["warning"] = (
                f"Frames are made square by {aspect} here, but by {self.aspect} where the encoder of {self.source} was "
                f"trained: it sees other shapes. Prepare the dataset with --aspect={self.aspect} (your own scans), or "
                f"use an encoder trained on frames of aspect {aspect}."
            )
        return said


def initial_variables(config: ConfigDict) -> Initial | None:
    """Return what the encoder of a configuration starts from; None for random weights.

    The source (`model.init`; of a downstream run, `encoder.init`) is the folder of a pretraining run, for its latest
    checkpoint, of one checkpoint in it (`RUN/checkpoints/1000`) or of `awcl_jax.export`, each on this host or in a
    bucket; or a file of PyTorch weights (see `models.weights.FILES`). With `model.init_head`, the projection head is
    loaded from a run, too. Nothing is compiled.

    Args:
      config: of either kind of run.

    Raises:
      InputError: the source does not exist, or has another architecture, width, normalisation or head.
      OSError: it cannot be read.
    """
    field = "encoder.init" if "task" in config else "model.init"
    init = config.encoder.init if "task" in config else config.model.init
    with_head = "task" not in config and config.model.init_head
    if init == RANDOM:
        if with_head:
            raise InputError("config.model.init_head needs a run to load the head from: set config.model.init to it.")
        return None
    if init.lower().endswith(FILES):
        encoder, title = encoders.load_torch(
            init,
            build.make_encoder(config),
            arch=config.model.arch,
            width_factor=config.model.width_factor,
            mean=config.augment.mean,
            std=config.augment.std,
            trained=config.model.init_input,
        )
        found = _encoder_alone(encoder, f"{init} ({title})")
    elif is_export(folder := fetch_run(init)):
        described = read_description(folder)
        likeness = {name: getattr(described, name) for name in ("arch", "width_factor", "strides")}
        if described.arch in SIZES:
            likeness |= {name: getattr(described.vit, name) for name in _VIT}
        _require_same(init, likeness | {"mean": described.options.mean, "std": described.options.std}, config)
        variables = _at_size(read_weights(folder, described), config)
        found = _encoder_alone(variables, f"{init} (an export)", aspect=described.square.aspect)
    else:
        return _of_run(folder, init, config, field=field, with_head=with_head)
    if with_head:
        raise InputError(f"{found.source} has no projection head. Set config.model.init_head=False, or use a run.")
    return found


def _of_run(folder: Path, init: str, config: ConfigDict, *, field: str, with_head: bool) -> Initial:
    run, step = trained.find_checkpoint(folder)
    if "task" in run_folder.read_run_config(run)["config"]:
        raise InputError(f"{run} is a downstream run. Set config.{field} to a pretraining run.")
    before = trained.read_config(run)
    likeness = {name: before.model[name] for name in ("arch", "width_factor", "strides")}
    if before.model.arch in SIZES:
        likeness |= {name: before.model.vit[name] for name in _VIT}
    likeness |= {"mean": before.augment.mean, "std": before.augment.std}
    if with_head:
        likeness |= {name: before.model[name] for name in ("hidden", "embedding")}
    _require_same(init, likeness, config)
    variables = trained.read_variables(run, step, before)
    modules = ("encoder", "projection") if with_head else ("encoder",)
    kept = {name: {module: tree[module] for module in modules if module in tree} for name, tree in variables.items()}
    kept["params"]["encoder"] = _at_size({"params": kept["params"]["encoder"]}, config)["params"]
    return Initial(kept, f"{init} (step {step:,} of {before.train.steps:,})", run_folder.read_aspect(run))


def _encoder_alone(variables: Mapping[str, PyTree], source: str, *, aspect: str | None = None) -> Initial:
    return Initial({name: {"encoder": tree} for name, tree in variables.items()}, source, aspect)


def _at_size(variables: Mapping[str, PyTree], config: ConfigDict) -> Mapping[str, PyTree]:
    """Return the variables of an encoder for the configured size of frames, which sets a ViT's table of positions."""
    if config.model.arch not in SIZES:
        return variables
    return vit_weights.at_grid(variables, (config.augment.size // config.model.vit.patch,) * 2)


def _require_same(init: str, found: Mapping[str, Any], config: ConfigDict) -> None:
    """Check that an encoder is the configured one.

    Args:
      init: where it is from.
      found: field -> its value there.
      config: of the run that starts from it.

    Raises:
      InputError: fields differ; lists the flags to add.
    """
    configured = {name: _group(config, _GROUPS.get(name, "model"))[name] for name in found}
    differing = {name: value for name, value in configured.items() if not _same(found[name], value)}
    if differing:
        values = ", ".join(f"{name} {found[name]} and not {value}" for name, value in differing.items())
        flags = " ".join(f"--config.{_GROUPS.get(name, 'model')}.{name}={found[name]}" for name in differing)
        raise InputError(f"The encoder of {init} has {values}, as configured. Add {flags}.")


def _group(config: ConfigDict, path: str) -> ConfigDict:
    for name in path.split("."):
        config = config[name]
    return config


def _same(one: Any, other: Any) -> bool:
    numbers = isinstance(one, float) and isinstance(other, int | float)
    return math.isclose(one, other, rel_tol=1e-9) if numbers else one == other
