"""Weights of ConvNeXts: read from the files of several libraries for a grey encoder, and written as timm's.

timm                              Facebook                torchvision               here, in params
stem.0.weight [d,c,4,4]           downsample_layers.0.0.  features.0.0.             stem_conv / kernel [4,4,c,d]
stages.1.downsample.1.weight      downsample_layers.1.1.  features.2.1.             stage1_down_conv / kernel
stages.1.blocks.0.conv_dw.weight  stages.1.0.dwconv.      features.3.0.block.0.     stage1_block0 / conv_dw / kernel
stages.1.blocks.0.mlp.fc1.weight  stages.1.0.pwconv1.     features.3.0.block.3.     stage1_block0 / fc1 / kernel
stages.1.blocks.0.gamma           stages.1.0.gamma        features.3.0.layer_scale  stage1_block0 / gamma
head.norm.weight                  norm.                   classifier.0.             norm / scale

ConvNextModel of transformers           DINOv3 of transformers                  here, in params
embeddings.patch_embeddings.            stages.0.downsample_layers.0.           stem_conv / kernel
encoder.stages.1.downsampling_layer.1.  stages.1.downsample_layers.1.           stage1_down_conv / kernel
encoder.stages.1.layers.0.dwconv.       stages.1.layers.0.depthwise_conv.       stage1_block0 / conv_dw / kernel
encoder.stages.1.layers.0.pwconv1.      stages.1.layers.0.pointwise_conv1.      stage1_block0 / fc1 / kernel
layernorm.                              layer_norm.                             norm / scale
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from awcl_jax.models.convnext import SMALLEST, STAGES, WIDTH, ConvNeXt, is_second
from awcl_jax.models.names import Layout, flattened, grouped, networks_by_prefix, renamed, require_one
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit_names import OTHERS
from awcl_jax.models.weights import (
    Loaded,
    Normalisation,
    fold_channels,
    in_channels,
    normalisation_of,
    read_content,
    write_safetensors,
)
from awcl_jax.runtime.errors import InputError

KNOWN = "ConvNeXts by the names of timm, Facebook, torchvision and transformers"

TIMM = Layout(
    "timm",
    "stem.0.weight",
    r"stages\.\d{1,4}\.blocks\.\d{1,4}\.conv_dw\.weight",
    left_out=r"head\.fc\..*",
)
FACEBOOK = Layout(
    "Facebook",
    "downsample_layers.0.0.weight",
    r"stages\.\d{1,4}\.\d{1,4}\.dwconv\.weight",
    rules=(
        (r"^downsample_layers\.0\.", "stem."),
        (r"^downsample_layers\.(\d{1,4})\.", r"stages.\1.downsample."),
        (r"^stages\.(\d{1,4})\.(\d{1,4})\.", r"stages.\1.blocks.\2."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.grn\.gamma$", ".mlp.grn.weight"),
        (r"\.grn\.beta$", ".mlp.grn.bias"),
        (r"^norm\.", "head.norm."),
    ),
    left_out=r"head\..*|norms\..*",  # of DINOv3 the last norm is there twice
)
TORCHVISION = Layout(
    "torchvision",
    "features.0.0.weight",
    r"features\.\d{1,4}\.\d{1,4}\.layer_scale",
    rules=(
        (r"^features\.0\.", "stem."),
        *((rf"^features\.{2 * stage}\.", f"stages.{stage}.downsample.") for stage in (1, 2, 3)),
        *((rf"^features\.{2 * stage + 1}\.(\d{{1,4}})\.", rf"stages.{stage}.blocks.\1.") for stage in range(4)),
        (r"\.block\.0\.", ".conv_dw."),
        (r"\.block\.2\.", ".norm."),
        (r"\.block\.3\.", ".mlp.fc1."),
        (r"\.block\.5\.", ".mlp.fc2."),
        (r"\.layer_scale$", ".gamma"),
        (r"^classifier\.0\.", "head.norm."),
    ),
    left_out=r"classifier\.2\..*",
)
TRANSFORMERS = Layout(
    "transformers'",
    "embeddings.patch_embeddings.weight",
    r"encoder\.stages\.\d{1,4}\.layers\.\d{1,4}\.dwconv\.weight",
    rules=(
        (r"^embeddings\.patch_embeddings\.", "stem.0."),
        (r"^embeddings\.layernorm\.", "stem.1."),
        (r"^encoder\.stages\.(\d{1,4})\.downsampling_layer\.", r"stages.\1.downsample."),
        (r"^encoder\.stages\.(\d{1,4})\.layers\.", r"stages.\1.blocks."),
        (r"^layernorm\.", "head.norm."),
        (r"\.layernorm\.", ".norm."),
        (r"\.dwconv\.", ".conv_dw."),
        (r"\.pwconv([12])\.", r".mlp.fc\1."),
        (r"\.grn\.(weight|bias)$", r".mlp.grn.\1"),
        (r"\.layer_scale_parameter$", ".gamma"),
    ),
)
DINOV3 = Layout(
    "DINOv3",
    "stages.0.downsample_layers.0.weight",
    r"stages\.\d{1,4}\.layers\.\d{1,4}\.depthwise_conv\.weight",
    rules=(
        (r"^stages\.0\.downsample_layers\.", "stem."),
        (r"^stages\.(\d{1,4})\.downsample_layers\.", r"stages.\1.downsample."),
        (r"^stages\.(\d{1,4})\.layers\.", r"stages.\1.blocks."),
        (r"^layer_norm\.", "head.norm."),
        (r"\.layer_norm\.", ".norm."),
        (r"\.depthwise_conv\.", ".conv_dw."),
        (r"\.pointwise_conv([12])\.", r".mlp.fc\1."),
    ),
)
LAYOUTS = (TIMM, FACEBOOK, TORCHVISION, TRANSFORMERS, DINOV3)

_FIRST = "stem.0.weight"
_LEAVES = {"kernel": "weight", "scale": "weight"}
_VECTORS = re.compile(r".*\.(gamma|mlp\.grn\.(weight|bias))")  # with axes of length 1 in some libraries


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """The network of a file.

    Attributes:
      layout: how the file names it.
      arrays: its arrays by timm's names.
      original: timm's name -> the file's, for messages.
      left_out: the file's names that are not used.
    """

    layout: Layout
    arrays: dict[str, np.ndarray]
    original: dict[str, str]
    left_out: list[str]

    @property
    def stages(self) -> tuple[int, ...]:
        """Blocks in each of the stages."""
        pattern = re.compile(r"stages\.(\d{1,4})\.blocks\.(\d{1,4})\.")
        blocks = {(int(m[1]), int(m[2])) for name in self.arrays if (m := pattern.match(name))}
        return tuple(sum(stage == s for s, _ in blocks) for stage in sorted({s for s, _ in blocks}))

    @property
    def width(self) -> int:
        """Features of the first stage."""
        return self.arrays[_FIRST].shape[0]

    @property
    def second(self) -> bool:
        """Whether it is of version 2."""
        return any(".mlp.grn." in name for name in self.arrays)

    @property
    def arch(self) -> str:
        """Name of the architecture, whatever its width; "" if it is none."""
        of = ((arch, (stages, is_second(arch))) for arch, stages in STAGES.items())
        return next((arch for arch, found in of if found == (self.stages, self.second)), "")

    @property
    def title(self) -> str:
        """The file in a few words."""
        version = " V2" if self.second else ""
        if self.arch and self.width == WIDTH:
            return f"{self.layout.title} ConvNeXt{version}-{self.arch.partition('_')[2][:1].upper()}"
        blocks = ", ".join(map(str, self.stages))
        return f"{self.layout.title} ConvNeXt{version} of {blocks} blocks from {self.width} features"

    @property
    def flags(self) -> str:
        """The flags that select this network; "" if it is none of ours."""
        fields = f"--config.model.arch={self.arch} --config.model.width_factor={self.width / WIDTH:.6g}"
        return fields if self.arch else ""


def load_torch_convnext(
    path: str | os.PathLike[str], model: ConvNeXt, *, mean: float, std: float, trained: Normalisation | None = None
) -> Loaded:
    """Return the weights of a grey ConvNeXt from a file, whose first kernel folds into one channel exactly.

    The formula is that of `models.vit_weights.load_torch_vit`: the first layer has no padding, so features are those of
    the file's network on the frame copied into its channels, whatever `mean` and `std`.

    Args:
      path: `.safetensors` or a file of `torch.save`, as for `models.weights.load_torch_resnet`, with the names of timm,
        of Facebook's code, of torchvision or of transformers.
      model: the encoder; its blocks, width and version must be those of the file.
      mean: of grey from 0 to 1, subtracted from the encoder's frames (`config.augment.mean`).
      std: likewise, divided by.
      trained: normalisation that the file's network was trained with. By default that stored by `awcl_jax.export`;
        ImageNet's for three channels, `mean` and `std` for one.

    Raises:
      InputError: the file does not exist, is damaged, or has another kind of network; the model has another size (the
        message lists the fields to set); names are missing, unknown, or of another shape (all are listed).
      OSError: it cannot be read.
    """
    content, metadata = read_content(Path(path))
    named = find_convnext(content, path)
    _require_fit(path, named, model)
    first = named.arrays[_FIRST]
    if problems := list(_problems(named, model, first.shape[1])):
        raise InputError(f"{path} does not fit the encoder: {'; '.join(problems)}.")
    params = {address: _from_torch(named.arrays[_torch_name(address)]) for address in _shapes(model, 1)}
    if folded := normalisation_of(path, metadata, trained, channels=first.shape[1], mean=mean, std=std):
        kernel, shift = fold_channels(params["stem_conv", "kernel"], folded, mean=mean, std=std)
        params["stem_conv", "kernel"] = kernel.astype(np.float32)
        params["stem_conv", "bias"] = (params["stem_conv", "bias"] + shift).astype(np.float32)
    return Loaded({"params": traverse_util.unflatten_dict(params)}, named.title, grouped(named.left_out))


def save_torch_convnext(
    path: Path, variables: Mapping[str, PyTree], *, mean: float, std: float, channels: int = 1
) -> None:
    """Write a grey ConvNeXt as safetensors under timm's names; `load_torch_convnext` reads it back bit for bit.

    Args:
      path: the file.
      variables: `params` of the encoder.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
      channels: of the first kernel: 1 as trained, or 3 with a third of the kernel each.

    Raises:
      OSError: the file cannot be written.
    """
    arrays = convnext_to_torch(variables)
    arrays[_FIRST] = in_channels(arrays[_FIRST], channels)
    write_safetensors(path, arrays, mean=mean, std=std, channels=channels)


def convnext_to_torch(variables: Mapping[str, PyTree]) -> dict[str, np.ndarray]:
    """Return a ConvNeXt's weights under timm's names and in its layout."""
    arrays = {}
    for address, leaf in traverse_util.flatten_dict(dict(variables["params"])).items():
        array = np.asarray(leaf)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        arrays[_torch_name(address)] = np.ascontiguousarray(array)
    return arrays


def find_convnext(content: Mapping[Any, Any], path: object) -> Named:
    """Find the ConvNeXt among the arrays of a file, at any depth and behind any prefix.

    Of a network and its moving average the network is used.

    Args:
      content: dictionaries of arrays, and other things, which are ignored.
      path: of the file, for messages.

    Raises:
      InputError: there is none, or several, or its first kernel is not one.
    """
    arrays = dict(flattened(content))
    if not (networks := networks_by_prefix(arrays, LAYOUTS)):
        kinds = (title for title, pattern in OTHERS if any(re.search(pattern, name) for name in arrays))
        if kind := next(kinds, ""):
            by = " by other names" if kind == "ConvNeXt" else ""
            raise InputError(f"{path} is a {kind}{by}; known are {KNOWN}.")
        begins = ", ".join(list(arrays)[:3]) or "no arrays"
        raise InputError(f"{path} has no ConvNeXt by known names (it begins with {begins}); known are {KNOWN}.")
    prefix, layout = require_one(networks, path)
    named, original, left_out = renamed(arrays, prefix, layout)
    if named[_FIRST].ndim != 4:
        raise InputError(f"{path} must have a first kernel [d, channels, 4, 4]; got {list(named[_FIRST].shape)}.")
    named = {name: array.reshape(-1) if _VECTORS.fullmatch(name) else array for name, array in named.items()}
    return Named(layout, named, original, left_out)


def describe_convnext(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return what ConvNeXt a file has, such as "timm ConvNeXt-T", and the fields to set for it; None for none.

    There are no fields, "", for a size that no encoder here has.

    Raises:
      InputError, OSError: the file is damaged, or cannot be read.
    """
    content, _ = read_content(Path(path))
    try:
        named = find_convnext(content, path)
    except InputError:
        return None
    return named.title, named.flags


def _require_fit(path: object, named: Named, model: ConvNeXt) -> None:
    """Raise an InputError with the fields to set, if the model is another than the file's."""
    if (named.stages, named.width, named.second) == (tuple(model.stage_sizes), model.width, model.second):
        return
    if not named.flags:
        blocks = ", ".join(map(str, model.stage_sizes))
        raise InputError(
            f"{path} is a {named.title}, which is none of {', '.join(STAGES)}; the encoder has {blocks} blocks from "
            f"{model.width} features."
        )
    raise InputError(f"{path} is a {named.title}; the encoder is another. Add {named.flags}.")


def _shapes(model: ConvNeXt, channels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    params = traverse_util.flatten_dict(variable_shapes(model, SMALLEST, channels)["params"])
    return {address: leaf.shape for address, leaf in params.items()}


def _torch_name(address: tuple[str, ...]) -> str:
    module, *inner, leaf = address
    module = re.sub(r"^stage(\d+)_block(\d+)$", r"stages.\1.blocks.\2", module)
    module = re.sub(r"^stage(\d+)_down_", r"stages.\1.downsample_", module)
    module = module.replace("_norm", ".1" if module.startswith("stem") else ".0")
    module = module.replace("_conv", ".0" if module.startswith("stem") else ".1")
    inner = [f"mlp.{part}" if part in ("fc1", "fc2", "grn") else part for part in inner]
    return ".".join(["head.norm" if module == "norm" else module, *inner, _LEAVES.get(leaf, leaf)])


def _problems(named: Named, model: ConvNeXt, channels: int) -> Iterator[str]:
    wanted = {_torch_name(address): _torch_shape(shape) for address, shape in _shapes(model, channels).items()}
    if missing := [name for name in wanted if name not in named.arrays]:
        yield f"missing {', '.join(missing)} (timm's names)"
    if unknown := [named.original[name] for name in named.arrays if name not in wanted]:
        yield f"unknown {', '.join(unknown)}"
    for name, shape in wanted.items():
        if name not in named.arrays:
            continue
        if named.arrays[name].shape != shape:
            yield f"{named.original[name]} must be {list(shape)}, got {list(named.arrays[name].shape)}"
        elif not np.isfinite(named.arrays[name]).all():
            yield f"{named.original[name]} has numbers that are not finite"


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def _from_torch(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T, np.float32)
