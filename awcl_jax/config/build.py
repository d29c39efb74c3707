"""Model, optimiser and dataset from a configuration."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from awcl_jax.ingest import prepare
from awcl_jax.models import encoders
from awcl_jax.models.pretraining import ContrastiveModel, Projection
from awcl_jax.models.resnet import ResNet
from awcl_jax.models.vit import ViTOptions
from awcl_jax.runtime import sharding
from awcl_jax.runtime.errors import InputError
from awcl_jax.train import optim


def make_model(config: ConfigDict) -> ContrastiveModel:
    """Make encoder and projection, without parameters."""
    projection = Projection(hidden=config.model.hidden, embedding=config.model.embedding)
    return ContrastiveModel(encoder=make_encoder(config), projection=projection)


def make_encoder(config: ConfigDict) -> encoders.Encoder:
    """Make the encoder, without parameters."""
    return encoders.make_encoder(
        config.model.arch,
        size=config.augment.size,
        width_factor=config.model.width_factor,
        strides=config.model.strides,
        dtype=jnp.dtype(config.model.dtype),
        axis_name=sharding.AXIS,
        remat=config.model.remat,
        vit=ViTOptions(**config.model.vit.to_dict()),
        drop_path=config.model.convnext.drop_path,
        train_blocks=config.model.train_blocks,
        freeze_patches=config.model.freeze_patches,
    )


def make_optimiser(config: ConfigDict) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Make the learning-rate schedule, and the optimiser that follows it."""
    learning_rate = optim.learning_rate_schedule(
        peak=config.optim.learning_rate,
        steps=config.train.steps,
        warmup_steps=config.optim.warmup_steps,
        schedule=config.optim.schedule,
    )
    optimiser = optim.make_optimiser(
        config.optim.name,
        learning_rate=learning_rate,
        weight_decay=config.optim.weight_decay,
        decay_all=config.optim.decay_all,
        clip_norm=config.optim.clip_norm,
    )
    encoder = make_encoder(config)
    if isinstance(encoder, ResNet):
        return learning_rate, optimiser
    if (decay := config.optim.layer_decay) != 1:
        optimiser = optim.scale_updates(optimiser, encoders.learning_rate_factors(encoder, decay))
    if config.model.train_blocks is not None or config.model.freeze_patches:
        optimiser = optim.freeze(optimiser, encoders.frozen_parameters(encoder))
    return learning_rate, optimiser


def dataset_path(config: ConfigDict) -> str | Path:
    """Return the folder of the dataset that the configuration names; the phantom is made if it does not exist.

    Raises:
      InputError: `data.path` is empty and the dataset is not the phantom.
    """
    if config.data.path:
        return str(config.data.path)
    if config.data.dataset != "phantom":
        raise InputError(
            f"config.data.path is missing. Prepare the dataset with `python -m awcl_jax.ingest {config.data.dataset} "
            "--out=DIR` and set --config.data.path=DIR."
        )
    return prepare.prepare_phantom(config.data.preset)


def frozen_part(config: ConfigDict, groups: Sequence[str], *, without: str) -> FrozenConfigDict:
    """Return some groups of a configuration, hashable: a key by which runs with equal groups share compiled programs.

    Args:
      config: of a run.
      groups: names of the fields and groups.
      without: a field of one of them to leave out, such as `model.init`.
    """
    part = ConfigDict({name: config[name] for name in groups}).copy_and_resolve_references()
    group, field = without.split(".")
    part[group].unlock()  # a configuration from a file is locked
    del part[group][field]
    return FrozenConfigDict(part)
