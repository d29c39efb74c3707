"""Weights of vision transformers: read from the files of several libraries for a grey encoder, and written as timm's.

timm                                 here, in params
patch_embed.proj.weight [d,c,p,p]    patch_kernel [p,p,c,d]
cls_token [1,1,d]                    cls_token [d], with its position
pos_embed [1,1+n,d]                  pos_embed [rows,columns,d], of the patches
blocks.0.attn.qkv.weight [3d,d]      blocks_0 / attn / qkv / kernel [d,3d]
blocks.0.norm1.weight, bias          blocks_0 / norm1 / scale, bias

and, for rotary positions, as timm's DINOv3 without pos_embed

blocks.0.attn.q_bias, v_bias [d]     blocks_0 / attn / qkv / q_bias, v_bias
blocks.0.gamma_1, gamma_2 [d]        blocks_0 / ls1, ls2 / gamma
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from awcl_jax.models.names import grouped
from awcl_jax.models.positions import resample_positions
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import HEAD, PATCHES, SIZES, ViT, ViTOptions
from awcl_jax.models.vit_names import Named, find_vit
from awcl_jax.models.weights import (
    IMAGENET,
    Loaded,
    Normalisation,
    fold_channels,
    in_channels,
    normalisation_of,
    read_content,
    write_safetensors,
)
from awcl_jax.runtime.errors import InputError

OPENAI = Normalisation(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
"""Of CLIP's weights and open_clip's."""

HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
"""Of timm's augreg weights, and Google's in transformers."""

NORMALISATIONS = {"imagenet": IMAGENET, "half": HALF, "openai": OPENAI}

_EPSILON, _ROTARY = "awcl_jax.epsilon", "awcl_jax.rotary"  # in the metadata of the files that we write
_LEAVES = {"kernel": "weight", "scale": "weight"}


def load_torch_vit(
    path: str | os.PathLike[str], model: ViT, *, mean: float, std: float, trained: Normalisation | None = None
) -> Loaded:
    """Return the weights of a grey vision transformer from a file, whose kernel folds into one channel exactly.

    The file's network was trained on channels x_c = (grey_c - mean_c) / std_c. A frame has one grey g, which is each
    grey_c, and comes to our encoder as n = (g - mean) / std, so that x_c = a_c n + b_c with

        a_c = std / std_c,    b_c = (mean - mean_c) / std_c
        sum_c W_c x_c = (sum_c a_c W_c) n + sum_c b_c (sum over the patch of W_c)

    The first bracket is the grey kernel. The second sum is a number per feature and goes into the patches' bias, or
    into their positions where they have no bias. Patches have no padding, so features are those of the file's network
    on the frame copied into its channels, whatever `mean` and `std`.

    Positions are resampled to the model's grid as the weights' own library does it (`models.positions`).

    Args:
      path: `.safetensors` or a file of `torch.save`, as for `models.weights.load_torch_resnet`, of one of the families
        in `models.vit_names`.
      model: the encoder; its size and options must be those of the file.
      mean: of grey from 0 to 1, subtracted from the encoder's frames (`config.augment.mean`).
      std: likewise, divided by.
      trained: normalisation that the file's network was trained with. By default that stored by `awcl_jax.export`;
        CLIP's for open_clip and timm's CLIP, ImageNet's for other networks of three channels, `mean` and `std` for one.

    Raises:
      InputError: the file does not exist, is damaged, or has another kind of network (the message names it); the model
        has another size or other options (the message lists the fields to set); names are missing, unknown, or of
        another shape (all are listed).
      OSError: it cannot be read.
    """
    content, metadata = read_content(Path(path))
    named = find_vit(content, path, rotary=_ROTARY in metadata)
    first = named.arrays["patch_embed.proj.weight"]
    if first.ndim != 4 or first.shape[2] != first.shape[3]:
        raise InputError(f"{path} must have a patch kernel [d, channels, p, p]; got {list(first.shape)}.")
    _require_fit(path, named, model, _epsilon(named, metadata))
    arrays = {name: np.asarray(array, np.float32) for name, array in named.arrays.items()}
    arrays = _with_positions(arrays, path, model, named.family.way)
    if problems := list(_problems(arrays, named, model, first.shape[1])):
        raise InputError(f"{path} does not fit the encoder: {'; '.join(problems)}.")
    params = {address: _from_torch(arrays[_torch_name(address)], address) for address in _shapes(model, 1)}
    by_family = OPENAI if named.family.clip or _of_timms_clip(named) else IMAGENET
    if folded := normalisation_of(
        path, metadata, trained, channels=first.shape[1], mean=mean, std=std, usual=by_family
    ):
        _fold(params, folded, mean, std)
    return Loaded(
        {"params": traverse_util.unflatten_dict(params)},
        f"{named.family.title} {_title(named)}",
        grouped(named.left_out),
    )


def at_grid(variables: Mapping[str, PyTree], grid: tuple[int, int]) -> dict[str, PyTree]:
    """Return the variables of a vision transformer with its table of positions, if any, resampled to another grid."""
    params = dict(variables["params"])
    if "pos_embed" not in params:
        return {**variables}
    params["pos_embed"] = resample_positions(np.asarray(params["pos_embed"]), grid, way="antialiased")
    return {**variables, "params": params}


def save_torch_vit(
    path: Path, variables: Mapping[str, PyTree], model: ViT, *, mean: float, std: float, channels: int = 1
) -> None:
    """Write a grey vision transformer as safetensors under timm's names; `load_torch_vit` reads it back bit for bit.

    Args:
      path: the file.
      variables: `params` of the encoder.
      model: the encoder.
      mean: of grey from 0 to 1, subtracted from the encoder's frames.
      std: likewise, divided by.
      channels: of the patches' kernel: 1 as trained, or 3 with a third of the kernel each.

    Raises:
      OSError: the file cannot be written.
    """
    arrays = vit_to_torch(variables, model)
    arrays["patch_embed.proj.weight"] = in_channels(arrays["patch_embed.proj.weight"], channels)
    metadata = {_EPSILON: repr(model.options.epsilon)} | ({_ROTARY: "True"} if model.options.rotary else {})
    write_safetensors(path, arrays, mean=mean, std=std, channels=channels, metadata=metadata)


def vit_to_torch(variables: Mapping[str, PyTree], model: ViT) -> dict[str, np.ndarray]:
    """Return a vision transformer's weights under timm's names and in its layout.

    Without registers the class token has a position in timm's table: a row of zeros, because it is part of the token.
    With rotary positions the names are those of timm's DINOv3.
    """
    arrays = {}
    for address, leaf in traverse_util.flatten_dict(dict(variables["params"])).items():
        array = np.asarray(leaf)
        name = _torch_name(address)
        if name == "pos_embed":
            table = array.reshape(-1, array.shape[-1])
            array = table if model.options.registers else np.concatenate([np.zeros_like(table[:1]), table])
        if name in ("cls_token", "reg_token", "pos_embed"):
            array = array.reshape(1, -1, array.shape[-1])
        elif array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        if model.options.norm_after and address[0] == "norm":
            name = f"fc_{name}"
        if model.options.rotary:
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
        arrays[name] = np.ascontiguousarray(array)
    return arrays


def describe_vit(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Return what vision transformer a file has, such as "timm ViT-S/16", and the fields to set for it; None for none.

    There are no fields, "", for a size that no encoder here has.

    Raises:
      InputError, OSError: the file is damaged, or cannot be read.
    """
    content, metadata = read_content(Path(path))
    try:
        named = find_vit(content, path, rotary=_ROTARY in metadata)
    except InputError:
        return None
    if named.arrays["patch_embed.proj.weight"].ndim != 4:
        return None
    found = _structure(named)
    known = _arch(found["depth"], found["width"]) and found["patch"] in PATCHES
    flags = _flags(named, depth=0, width=0, options=ViTOptions(), epsilon=_epsilon(named, metadata)) if known else ""
    return f"{named.family.title} {_title(named)}", flags


def _epsilon(named: Named, metadata: Mapping[str, Any]) -> float:
    with contextlib.suppress(ValueError):
        if _EPSILON in metadata:
            return float(metadata[_EPSILON])
    return 1e-5 if _of_timms_clip(named) else named.family.epsilon  # these keep CLIP's


def _of_timms_clip(named: Named) -> bool:
    """Return whether this is one of timm's CLIP networks, which alone have a normalisation before the blocks."""
    return "norm_pre.weight" in named.arrays


def _structure(named: Named) -> dict[str, Any]:
    """Return what the arrays show of a network."""
    arrays = named.arrays
    kernel = arrays["patch_embed.proj.weight"]
    registers = arrays["reg_token"].shape[-2] if "reg_token" in arrays and arrays["reg_token"].ndim > 1 else 0
    blocks = {int(m[1]) for name in arrays if (m := re.match(r"blocks\.(\d{1,4})\.", name))}
    return {
        "depth": max(blocks) + 1,
        "width": kernel.shape[0],
        "patch": kernel.shape[2],
        "registers": registers,
        "layer_scale": any(re.fullmatch(r"blocks\.\d+\.ls1\.gamma", name) for name in arrays),
        "pre_norm": "norm_pre.weight" in arrays,
        "norm_after": named.norm_after,
        "rotary": named.family.rotary,
    }


def _arch(depth: int, width: int) -> str:
    return next((name for name, (d, heads) in SIZES.items() if (d, HEAD * heads) == (depth, width)), "")


def _title(named: Named) -> str:
    found = _structure(named)
    arch = _arch(found["depth"], found["width"])
    size = arch.removeprefix("vit_")[:1].upper() if arch else f" of {found['depth']} blocks, {found['width']} features"
    extras = [
        *([f"{found['registers']} register{'s' * (found['registers'] > 1)}"] if found["registers"] else []),
        *(words for field, words in _EXTRAS.items() if found[field]),
    ]
    joined = f" with {' and '.join(extras)}" if extras else ""
    return f"ViT{'-' if arch else ''}{size}/{found['patch']}{joined}"


_EXTRAS = {
    "layer_scale": "layer scale",
    "pre_norm": "a normalisation before the blocks",
    "norm_after": "a normalisation after the pooling",
    "rotary": "rotary positions",
}


def _require_fit(path: object, named: Named, model: ViT, epsilon: float) -> None:
    """Raise an InputError with all fields to set, if the model is another than the file's."""
    found = _structure(named)
    title = f"{named.family.title} {_title(named)}"
    if (found["depth"], found["width"]) != (model.depth, model.width) and not _arch(found["depth"], found["width"]):
        raise InputError(
            f"{path} is a {title}, which is none of {', '.join(SIZES)}; the encoder has {model.depth} blocks of "
            f"{model.width} features."
        )
    if found["patch"] not in PATCHES:
        known = ", ".join(map(str, PATCHES))
        raise InputError(f"{path} is a {title}; patches of {found['patch']} pixels are not read, only of {known}.")
    if flags := _flags(named, depth=model.depth, width=model.width, options=model.options, epsilon=epsilon):
        raise InputError(f"{path} is a {title}; the encoder is another. Add {flags}.")


def _flags(named: Named, *, depth: int, width: int, options: ViTOptions, epsilon: float) -> str:
    """Return the flags that turn an encoder of this depth, width and options into the file's."""
    found = _structure(named)
    flags = []
    if (found["depth"], found["width"]) != (depth, width):
        flags += [f"model.arch={_arch(found['depth'], found['width'])}", "model.width_factor=1"]
    fields = ("patch", "registers", "layer_scale", "pre_norm", "norm_after", "rotary")
    flags += [f"model.vit.{field}={found[field]}" for field in fields if found[field] != getattr(options, field)]
    if not math.isclose(epsilon, options.epsilon):
        flags.append(f"model.vit.epsilon={epsilon:g}")
    return " ".join(f"--config.{flag}" for flag in flags)


def _with_positions(arrays: Mapping[str, np.ndarray], path: object, model: ViT, way: str) -> dict[str, np.ndarray]:
    """Return the arrays with positions of the patches only, resampled, and those of other tokens added to these."""
    arrays, registers, width = dict(arrays), model.options.registers, model.width
    for name, count in (("cls_token", 1), ("reg_token", registers)):
        if name in arrays and arrays[name].size == count * width:
            arrays[name] = arrays[name].reshape(count, width)
    if model.options.rotary or "pos_embed" not in arrays or arrays["pos_embed"].shape[-1:] != (width,):
        return arrays
    table = arrays["pos_embed"].reshape(-1, width)
    # timm's networks with registers have positions for patches only, DINOv2's for the class token, too.
    before = [b for b in (0, 1, 1 + registers) if len(table) > b and math.isqrt(len(table) - b) ** 2 == len(table) - b]
    if not before:
        raise InputError(
            f"{path} has positions for {len(table)} tokens, which is neither a square of patches nor one with the "
            f"{1 + registers} token(s) before them. Only square tables are read."
        )
    tokens = table[: before[0]]
    if len(tokens) and "cls_token" in arrays and arrays["cls_token"].shape == (1, width):
        arrays["cls_token"] = arrays["cls_token"] + tokens[:1]
    if len(tokens) > 1 and "reg_token" in arrays:
        arrays["reg_token"] = arrays["reg_token"] + tokens[1:]
    patches = table[before[0] :]
    edge = math.isqrt(len(patches))
    # With registers DINOv2 and transformers resample without an offset, and antialiased.
    way = "antialiased" if registers and way in ("offset", "plain") else way
    arrays["pos_embed"] = resample_positions(patches.reshape(edge, edge, width), model.grid, way=way)
    return arrays


def _shapes(model: ViT, channels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    params = traverse_util.flatten_dict(variable_shapes(model, model.patch, channels)["params"])
    return {address: leaf.shape for address, leaf in params.items()}


def _torch_name(address: tuple[str, ...]) -> str:
    *modules, leaf = address
    if leaf.startswith("patch_"):
        return f"patch_embed.proj.{'bias' if leaf == 'patch_bias' else 'weight'}"
    if leaf in ("q_bias", "v_bias"):
        modules = modules[:-1]
    modules = [re.sub(r"^blocks_", "blocks.", module) for module in modules]
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def _problems(arrays: Mapping[str, np.ndarray], named: Named, model: ViT, channels: int) -> Iterator[str]:
    wanted = {_torch_name(address): _torch_shape(address, shape) for address, shape in _shapes(model, channels).items()}
    if missing := [name for name in wanted if name not in arrays]:
        yield f"missing {', '.join(missing)} (timm's names)"
    if unknown := [named.original[name] for name in arrays if name not in wanted]:
        yield f"unknown {', '.join(unknown)}"
    for name, shape in wanted.items():
        if name not in arrays:
            continue
        if arrays[name].shape != shape:
            yield f"{named.original[name]} must be {list(shape)}, got {list(arrays[name].shape)}"
        elif not np.isfinite(arrays[name]).all():
            yield f"{named.original[name]} has numbers that are not finite"


def _torch_shape(address: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if address[-1] == "cls_token":
        return (1, *shape)
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return shape[::-1] if address[-1] == "kernel" else shape


def _from_torch(array: np.ndarray, address: tuple[str, ...]) -> np.ndarray:
    if address[-1] == "cls_token":
        array = array[0]
    elif array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif address[-1] == "kernel":
        array = array.T
    return np.ascontiguousarray(array, np.float32)


def _fold(params: dict[tuple[str, ...], np.ndarray], trained: Normalisation, mean: float, std: float) -> None:
    """Fold the channels of the patches' kernel into one, in place."""
    kernel, shift = fold_channels(params["patch_kernel",], trained, mean=mean, std=std)
    params["patch_kernel",] = kernel.astype(np.float32)
    onto = ("patch_bias",) if ("patch_bias",) in params else ("pos_embed",)
    params[onto] = (params[onto] + shift).astype(np.float32)
