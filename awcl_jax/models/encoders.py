"""Every encoder by its name: ResNets, vision transformers and ConvNeXts."""

import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from awcl_jax.models import convnext, resnet
from awcl_jax.models import vit as transformers
from awcl_jax.models.convnext import ConvNeXt, make_convnext
from awcl_jax.models.convnext_weights import describe_convnext, load_torch_convnext
from awcl_jax.models.resnet import ResNet, make_resnet
from awcl_jax.models.vit import ViT, ViTOptions, make_vit
from awcl_jax.models.vit_weights import NORMALISATIONS, describe_vit, load_torch_vit
from awcl_jax.models.weights import load_torch_resnet
from awcl_jax.runtime.errors import InputError

Encoder = ResNet | ViT | ConvNeXt
ARCHS = (*resnet.STAGES, *transformers.SIZES, *convnext.STAGES)
BY_LAYER = (*transformers.SIZES, *convnext.STAGES)
"""Those that train only some of their blocks, or each layer with another learning rate."""

INPUTS = ("auto", *NORMALISATIONS)
"""Names of normalisations of the input that weights were trained with."""


def make_encoder(
    arch: str,
    *,
    size: int,
    width_factor: float = 1.0,
    strides: str = "v1.5",
    vit: ViTOptions = ViTOptions(),  # noqa: B008 (frozen)
    drop_path: float = 0.0,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
    train_blocks: int | None = None,
    freeze_patches: bool = False,
) -> Encoder:
    """Make an encoder by its name.

    Args:
      arch: one of ARCHS.
      size: edge in pixels of its frames; a ResNet takes any, a ConvNeXt any from 32.
      width_factor: multiplies the number of features in every layer.
      strides: of a ResNet.
      vit: options of a vision transformer.
      drop_path: of a ConvNeXt; a vision transformer's is among its options.
      dtype: type of the arithmetic.
      axis_name: mesh axis over which batch norm synchronises.
      remat: recompute blocks for their gradient.
      train_blocks: of a vision transformer or a ConvNeXt.
      freeze_patches: of a vision transformer or a ConvNeXt.

    Raises:
      InputError: unknown architecture, or options that do not fit it.
    """
    common: dict[str, Any] = {"width_factor": width_factor, "dtype": dtype, "remat": remat}
    partly: dict[str, Any] = {"train_blocks": train_blocks, "freeze_patches": freeze_patches}
    if arch in transformers.SIZES:
        return make_vit(arch, size=size, options=vit, **common, **partly)
    if arch in convnext.STAGES:
        return make_convnext(arch, size=size, drop_path=drop_path, **common, **partly)
    if arch not in resnet.STAGES:
        raise InputError(f"The encoder must be one of {', '.join(ARCHS)}; got {arch!r}.")
    return make_resnet(arch, strides=strides, axis_name=axis_name, **common)


def feature_count(model: Encoder, arch: str) -> int:
    """Return the number of features of an encoder."""
    if isinstance(model, ViT):
        return model.width * (2 if model.options.pool == "both" else 1)
    return model.width * 8 * (4 if arch == "resnet50" else 1)


def learning_rate_factors(model: ViT | ConvNeXt, decay: float) -> Callable[[tuple[str, ...]], float]:
    """Return the factor on the learning rate of each parameter: `decay` once for every layer after its own."""
    if isinstance(model, ViT):
        return lambda path: decay ** (model.depth + 1 - transformers.layer_of(path, depth=model.depth))
    last = convnext.layer_count(model) + 1
    return lambda path: decay ** (last - convnext.layer_of(path, model))


def frozen_parameters(model: ViT | ConvNeXt) -> Callable[[tuple[str, ...]], bool]:
    """Return which parameters of a model with this encoder get no gradient, by `train_blocks` and `freeze_patches`."""
    return transformers.frozen_parameters(model) if isinstance(model, ViT) else convnext.frozen_parameters(model)


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
      path: the file, see `load_torch_resnet`, `load_torch_vit` and `load_torch_convnext`.
      model: the encoder.
      arch: its name.
      width_factor: its multiplier of the number of features.
      mean: of grey from 0 to 1, subtracted from its frames.
      std: likewise, divided by.
      trained: normalisation that the file's network was trained with, one of INPUTS; `auto` by the kind of file.

    Raises:
      InputError: the file does not exist, or does not fit the encoder.
    """
    normalised: dict[str, Any] = {"mean": mean, "std": std, "trained": NORMALISATIONS.get(trained)}
    try:
        if isinstance(model, ResNet):
            return load_torch_resnet(path, arch, width_factor=width_factor, **normalised), "PyTorch weights"
        if isinstance(model, ViT):
            loaded = load_torch_vit(path, model, **normalised)
        else:
            loaded = load_torch_convnext(path, model, **normalised)
    except InputError:
        kinds = ((ViT, describe_vit), (ConvNeXt, describe_convnext))
        others = (describe(path) for kind, describe in kinds if not isinstance(model, kind))
        if (found := next(filter(None, others), None)) is None:
            raise
        title, flags = found
        sizes = f"It has a size that no encoder here has; model.arch is one of {', '.join(ARCHS)}"
        advice = f"Add {flags}" if flags else sizes
        raise InputError(f"{path} is a {title}; the encoder is a {arch}. {advice}.") from None
    return loaded.variables, loaded.title + (f"; left out: {loaded.left_out}" if loaded.left_out else "")
