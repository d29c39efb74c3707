"""Every encoder by its name: ResNets and vision transformers."""

import os
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from awcl_jax.models.resnet import STAGES, ResNet, make_resnet
from awcl_jax.models.vit import SIZES, ViT, ViTOptions, make_vit
from awcl_jax.models.vit_weights import NORMALISATIONS, describe_vit, load_torch_vit
from awcl_jax.models.weights import Normalisation, load_torch_resnet
from awcl_jax.runtime.errors import InputError

Encoder = ResNet | ViT
ARCHS = (*STAGES, *SIZES)
INPUTS = ("auto", *NORMALISATIONS)
"""Names of normalisations of the input that weights were trained with."""


def make_encoder(
    arch: str,
    *,
    size: int,
    width_factor: float = 1.0,
    strides: str = "v1.5",
    vit: ViTOptions = ViTOptions(),  # noqa: B008 (frozen)
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
    train_blocks: int | None = None,
    freeze_patches: bool = False,
) -> Encoder:
    """Make an encoder by its name.

    Args:
      arch: one of ARCHS.
      size: edge in pixels of its frames; a ResNet takes any.
      width_factor: multiplies the number of features in every layer.
      strides: of a ResNet.
      vit: options of a vision transformer.
      dtype: type of the arithmetic.
      axis_name: mesh axis over which batch norm synchronises.
      remat: recompute blocks for their gradient.
      train_blocks: of a vision transformer.
      freeze_patches: of a vision transformer.

    Raises:
      InputError: unknown architecture, or options that do not fit it.
    """
    if arch in SIZES:
        return make_vit(
            arch,
            size=size,
            options=vit,
            width_factor=width_factor,
            dtype=dtype,
            remat=remat,
            train_blocks=train_blocks,
            freeze_patches=freeze_patches,
        )
    if arch not in STAGES:
        raise InputError(f"The encoder must be one of {', '.join(ARCHS)}; got {arch!r}.")
    return make_resnet(arch, width_factor=width_factor, strides=strides, dtype=dtype, axis_name=axis_name, remat=remat)


def feature_count(model: Encoder, arch: str) -> int:
    """Return the number of features of an encoder."""
    if isinstance(model, ViT):
        return model.width * (2 if model.options.pool == "both" else 1)
    return model.width * 8 * (4 if arch == "resnet50" else 1)


def load_torch(
    path: str | os.PathLike[str],
    model: Encoder,
    *,
    arch: str,
    width_factor: float,
    mean: float,
    std: float,
    trained: str = "auto",
) -> tuple[dict[str, PyTree], str]:
    """Return the variables of an encoder from a file of PyTorch weights, and in a few words what the file is.

    Args:
      path: the file, see `models.weights.load_torch_resnet` and `models.vit_weights.load_torch_vit`.
      model: the encoder.
      arch: its name.
      width_factor: its multiplier of the number of features.
      mean: of grey from 0 to 1, subtracted from its frames.
      std: likewise, divided by.
      trained: normalisation that the file's network was trained with, one of INPUTS; `auto` by the kind of file.

    Raises:
      InputError: the file does not exist, or does not fit the encoder.
    """
    given: Normalisation | None = NORMALISATIONS.get(trained)
    if isinstance(model, ViT):
        loaded = load_torch_vit(path, model, mean=mean, std=std, trained=given)
        rest = f"; left out: {loaded.left_out}" if loaded.left_out else ""
        return loaded.variables, f"{loaded.title}{rest}"
    try:
        variables = load_torch_resnet(path, arch, mean=mean, std=std, width_factor=width_factor, trained=given)
    except InputError:
        if (found := describe_vit(path)) is None:
            raise
        raise InputError(f"{path} is a {found[0]}; the encoder is a {arch}. Add {found[1]}.") from None
    return variables, "PyTorch weights"
