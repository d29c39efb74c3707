"""Vision transformers by the names of several libraries: recognised, and renamed to timm's.

    timm (augreg, DeiT, MAE, DINO)   blocks.0.attn.qkv.weight           patch_embed.proj.weight
    DINOv2, DINOv3                   blocks.0.attn.qkv.weight, or       patch_embed.proj.weight
                                     blocks.0.0.attn... in chunks
    torchvision                      encoder.layers.encoder_layer_0.    conv_proj.weight
                                     self_attention.in_proj_weight
    open_clip, CLIP                  transformer.resblocks.0.           conv1.weight
                                     attn.in_proj_weight
    transformers                     encoder.layer.0.attention.         embeddings.patch_embeddings.
                                     attention.query.weight, or           projection.weight
                                     layers.0.attention.q_proj.weight
    DINOv3 of transformers           layer.0.attention.q_proj.weight    embeddings.patch_embeddings.weight
    CLIP of transformers             encoder.layers.0.self_attn.         embeddings.patch_embedding.weight
                                     q_proj.weight

Heads, MAE's decoder, CLIP's text tower and whatever else is beside a network are left out, by name.

DINOv3's positions are rotary (`models.rotary`) and its keys have no bias: timm has attn.q_bias and attn.v_bias, or
neither, and Facebook's code multiplies attn.qkv.bias by attn.qkv.bias_mask, which is 0 for keys.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from awcl_jax.models.names import Layout, flattened, networks_by_prefix, renamed, require_one
from awcl_jax.models.rotary import periods
from awcl_jax.models.vit import HEAD
from awcl_jax.runtime.errors import InputError

KNOWN = "ViTs by the names of timm (augreg, DeiT, MAE, DINO), DINOv2 and 3, torchvision, open_clip and transformers"


@dataclasses.dataclass(frozen=True)
class Family(Layout):
    """How a library names its vision transformers.

    Attributes:
      way: how its library resamples positions, see `models.positions`.
      epsilon: of its normalisations.
      clip: whether its networks see pictures normalised as CLIP's, not as ImageNet's.
      rotary: whether its positions are those of `models.rotary`.
    """

    way: str = "antialiased"
    epsilon: float = 1e-6
    clip: bool = False
    rotary: bool = False


TIMM = Family(
    "timm",
    "patch_embed.proj.weight",
    r"blocks\.\d{1,4}\.norm1\.weight",
    rules=((r"^fc_norm\.", "norm."),),
    left_out=r"(head|head_dist|fc|pre_logits|classifier)\..*|.*\.num_batches_tracked",
)
MAE = dataclasses.replace(
    TIMM, title="MAE", left_out=rf"decoder_.*|mask_token|{TIMM.left_out}", way="plain"
)  # with its decoder; an encoder alone is as timm's
DINO = dataclasses.replace(TIMM, title="DINO", way="offset")  # with its head
DISTILLED = dataclasses.replace(
    TIMM, title="distilled DeiT", rules=(*TIMM.rules, (r"^dist_token$", "reg_token"))
)  # whose second token is a register here: timm averages the two, our features are without it
DINOV2 = Family(
    "DINOv2",
    "patch_embed.proj.weight",
    r"blocks\.\d{1,4}\.(\d{1,4}\.)?norm1\.weight",
    rules=((r"^blocks\.\d{1,4}\.(\d{1,4})\.", r"blocks.\1."), (r"^register_tokens$", "reg_token")),
    left_out=r"mask_token|(head|dino_head|ibot_head)\..*",
    way="offset",
)
DINOV3 = dataclasses.replace(
    DINOV2,
    title="DINOv3",
    rules=(*DINOV2.rules, (r"^storage_tokens$", "reg_token")),
    left_out=rf"{DINOV2.left_out}|rope_embed\.periods|local_cls_norm\..*",
    epsilon=1e-5,
    rotary=True,
)
TIMM_DINOV3 = dataclasses.replace(
    TIMM,
    title="timm DINOv3",
    rules=(*TIMM.rules, (r"\.gamma_([12])$", r".ls\1.gamma")),
    epsilon=1e-5,
    rotary=True,
)
TORCHVISION = Family(
    "torchvision",
    "conv_proj.weight",
    r"encoder\.layers\.encoder_layer_\d{1,4}\.ln_1\.weight",
    rules=(
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.ln\.", "norm."),
        (r"^encoder\.layers\.encoder_layer_(\d{1,4})\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
    ),
    left_out=r"heads\..*",
    way="corners",
)
OPEN_CLIP = Family(
    "open_clip",
    "conv1.weight",
    r"transformer\.resblocks\.\d{1,4}\.ln_1\.weight",
    rules=(
        (r"^class_embedding$", "cls_token"),
        (r"^conv1\.", "patch_embed.proj."),
        (r"^positional_embedding$", "pos_embed"),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^transformer\.resblocks\.(\d{1,4})\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.ls_([12])\.", r".ls\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ),
    left_out=r"proj",
    epsilon=1e-5,
    clip=True,
)
_TRANSFORMERS = (
    (r"^embeddings\.(cls_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.)?layers?\.(\d{1,4})\.", r"blocks.\1."),
    (r"\.(?:layernorm_before|norm1)\.", ".norm1."),
    (r"\.(?:layernorm_after|norm2)\.", ".norm2."),
    (r"\.attention\.(?:attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(?:attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(?:attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
VIT_MODEL = Family(
    "transformers' ViTModel",
    "embeddings.patch_embeddings.projection.weight",
    r"(encoder\.)?layers?\.\d{1,4}\.layernorm_before\.weight",
    rules=_TRANSFORMERS,
    left_out=r"(pooler|classifier)\..*|embeddings\.mask_token",
    way="plain",
    epsilon=1e-12,
)
DINOV2_MODEL = dataclasses.replace(
    VIT_MODEL, title="transformers' Dinov2Model", block=r"(encoder\.)?layers?\.\d{1,4}\.norm1\.weight", epsilon=1e-6
)
DINOV3_MODEL = Family(
    "transformers' DINOv3ViTModel",
    "embeddings.patch_embeddings.weight",
    r"(model\.)?layer\.\d{1,4}\.norm1\.weight",
    rules=(
        (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
        (r"^model\.", ""),  # of its version 5
        *_TRANSFORMERS,
        (r"\.mlp\.up_proj\.", ".mlp.fc1."),
        (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    ),
    left_out=r"embeddings\.mask_token|rope_embeddings\.inv_freq",
    epsilon=1e-5,
    rotary=True,
)
CLIP_MODEL = Family(
    "transformers' CLIP",
    "embeddings.patch_embedding.weight",
    r"encoder\.layers\.\d{1,4}\.layer_norm1\.weight",
    rules=(
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
        (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
        (r"^pre_layrnorm\.", "norm_pre."),  # spelt so there
        (r"^post_layernorm\.", "norm."),
        (r"^encoder\.layers\.(\d{1,4})\.", r"blocks.\1."),
        (r"\.layer_norm([12])\.", r".norm\1."),
        (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
    ),
    left_out=r"embeddings\.position_ids",
    way="plain",
    epsilon=1e-5,
    clip=True,
)
FAMILIES = (TIMM, DINOV2, TORCHVISION, OPEN_CLIP, VIT_MODEL, DINOV2_MODEL, DINOV3_MODEL, CLIP_MODEL)

_GATED = "ViT with gated perceptrons (SwiGLU)"
_VIDEO = "video transformer"
_OTHER_ROTARY = "ViT with rotary positions other than DINOv3's (EVA-02)"
_POSITIONS = re.compile(r"(^|[._])pos(ition|itional)?_embed")

OTHERS = (
    ("Swin transformer", r"(^|\.)layers\.\d+\.blocks\.\d+\.(attn|attention)\.(.*\.)?relative_position"),
    ("Mamba", r"\.(A_log|ssm\..*|x_proj\.weight)$"),
    (_VIDEO, r"(^|[._])(time|temporal)_(embed|attn|position|fc)"),
    ("ViT with relative positions (BEiT, SAM)", r"relative_position_bias|rel_pos_[hw]"),
    ("ConvNeXt", r"(^|\.)stages\.\d+\.(blocks\.|layers\.)?\d+\.(dwconv|conv_dw|gamma)|downsample_layers\.\d"),
    (_OTHER_ROTARY, r"(^|\.)rope\.|\.inner_attn_ln\."),
    ("ViT pooled by attention, without a class token (SigLIP)", r"(^|\.)(head\.probe|attn_pool\.latent)$"),
    (_GATED, r"\.mlp\.(w1|w12|fc1_g|weights_in|gate_proj)\."),
    ("distilled DeiT by the names of transformers (timm's are read)", r"(^|\.)distillation_token$"),
    ("CLIP ResNet", r"(^|\.)visual\.layer1\.0\.conv1\.weight$"),
    ("ResNet", r"(^|\.)layer1\.0\.conv1\.weight$"),
)
"""Kinds of networks that are not read as vision transformers, each with a pattern of a name that only it has, or those
before it as well."""


@dataclasses.dataclass(frozen=True, eq=False)
class Named:
    """The network of a file.

    Attributes:
      family: how the file names it.
      arrays: its arrays by timm's names, separate queries, keys and values joined.
      original: timm's name -> the file's, for messages.
      left_out: the file's names that are not used.
      norm_after: whether its last normalisation follows the pooling.
    """

    family: Family
    arrays: dict[str, np.ndarray]
    original: dict[str, str]
    left_out: tuple[str, ...]
    norm_after: bool


def find_vit(content: Mapping[Any, Any], path: object, *, rotary: bool = False) -> Named:
    """Find the vision transformer among the arrays of a file, at any depth and behind any prefix.

    Of a network and its moving average the network is used, and of a student and its teacher the teacher.

    Args:
      content: dictionaries of arrays, and other things, which are ignored.
      path: of the file, for messages.
      rotary: whether a network of timm's names is known to have rotary positions, whatever options it has.

    Raises:
      InputError: there is none, or several, or its rotary positions or keys are of another kind than ours; the message
        names what the file has.
    """
    arrays = dict(flattened(content))
    networks = networks_by_prefix(arrays, FAMILIES)
    networks = {prefix: _refined(arrays, prefix, family, rotary=rotary) for prefix, family in networks.items()}
    if other := _other(arrays, networks):
        raise InputError(f"{path} is a {other}; known are {KNOWN}.")
    if not networks:
        begins = ", ".join(list(arrays)[:3]) or "no arrays"
        raise InputError(
            f"{path} has no vision transformer by known names (it begins with {begins}); known are {KNOWN}."
        )
    prefix, family = require_one(networks, path)
    named = _named(arrays, prefix, family)
    if family.rotary:
        _require_periods(arrays, prefix, path)
        _separate_biases(named, path)
    return named


def _refined(arrays: Mapping[str, np.ndarray], prefix: str, family: Family, *, rotary: bool) -> Family:
    """Return which of the families with timm's names a network is of."""
    if family.first != TIMM.first:
        return family
    if f"{prefix}storage_tokens" in arrays or f"{prefix}rope_embed.periods" in arrays:
        return DINOV3
    if rotary or _is_timms_dinov3(arrays, prefix):
        return TIMM_DINOV3
    if f"{prefix}decoder_embed.weight" in arrays:
        return MAE
    if f"{prefix}dist_token" in arrays:
        return DISTILLED
    if (
        f"{prefix}mask_token" in arrays
        or f"{prefix}register_tokens" in arrays
        or (
            family is DINOV2
            and any(re.match(re.escape(prefix) + r"blocks\.\d{1,4}\.\d{1,4}\.", name) for name in arrays)
        )
    ):
        return DINOV2
    return DINO if any(re.search(r"(^|\.)last_layer\.", name) for name in arrays) else TIMM


def _is_timms_dinov3(arrays: Mapping[str, np.ndarray], prefix: str) -> bool:
    """Return whether a network of timm's names is a DINOv3.

    timm's other networks without a table of positions have no class token, or biases of keys.
    """
    has = ("cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight")
    lacks = ("pos_embed", "blocks.0.attn.qkv.bias")
    return all(prefix + name in arrays for name in has) and not any(prefix + name in arrays for name in lacks)


def _require_periods(arrays: Mapping[str, np.ndarray], prefix: str, path: object) -> None:
    """Raise an InputError if rotary positions of a file have other periods than ours, up to a bfloat16's rounding."""
    ours = periods(HEAD)
    for name, expected in (("rope_embed.periods", ours), ("rope_embeddings.inv_freq", 1 / ours)):
        found = np.asarray(arrays.get(prefix + name, expected), np.float64)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=2**-8, atol=0):
            raise InputError(
                f"{path} has other periods of rotary positions than 100^(k / {len(ours)}) in {prefix}{name}. Only "
                "DINOv3's are read."
            )


def _separate_biases(named: Named, path: object) -> None:
    """Replace biases of queries, keys and values by those of queries and of values, in place.

    Raises:
      InputError: keys have a bias.
    """
    arrays, original = named.arrays, named.original
    for name in [name for name in arrays if name.endswith(".attn.qkv.bias")]:
        mask = arrays.get(f"{name}_mask", np.ones_like(arrays[name]))
        if arrays[name].ndim != 1 or len(arrays[name]) % 3 or mask.shape != arrays[name].shape:
            continue  # named with all others that do not fit
        q, k, v = np.split(arrays.pop(name) * mask, 3)
        arrays.pop(f"{name}_mask", None)
        if k.any():
            raise InputError(f"{path} has a bias of keys in {original[name]}. Only DINOv3s without one are read.")
        arrays |= {name.replace(".qkv.bias", f".{part}_bias"): bias for part, bias in (("q", q), ("v", v))}
        original |= {name.replace(".qkv.bias", f".{part}_bias"): original[name] for part in "qv"}
    # Those of separate layers; and a network may have none at all.
    for name in [name for name in arrays if re.search(r"\.attn\.[qv]\.bias$", name)]:
        other = re.sub(r"\.bias$", "_bias", name)
        arrays[other], original[other] = arrays.pop(name), original.pop(name)
    if not any(re.search(r"\.attn\.[qv]_bias$", name) for name in arrays):
        for name in [name for name in arrays if name.endswith(".attn.qkv.weight") and arrays[name].ndim == 2]:
            for part in "qv":
                bias = name.replace(".qkv.weight", f".{part}_bias")
                arrays[bias], original[bias] = np.zeros(len(arrays[name]) // 3, np.float32), original[name]


def _named(arrays: Mapping[str, np.ndarray], prefix: str, family: Family) -> Named:
    named, original, left_out = renamed(arrays, prefix, family)
    after = any(full == f"{prefix}fc_norm.weight" for full in arrays)
    for name in [name for name in named if re.search(r"\.attn\.q\.(weight|bias)$", name)]:
        parts = [name.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in named and named[part].shape == named[name].shape for part in parts):
            whole = name.replace(".attn.q.", ".attn.qkv.")
            original[whole] = ", ".join(original.pop(part) for part in parts)
            named[whole] = np.concatenate([named.pop(part) for part in parts])
    return Named(family, named, original, tuple(left_out), after)


def _other(arrays: Mapping[str, np.ndarray], networks: Mapping[str, Family]) -> str:
    """Return what else a file is, if it is a network of a kind that is not read; "" otherwise."""
    if len(networks) > 1:
        return ""
    prefix, family = next(iter(networks.items()), ("", TIMM))
    names = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    if any("patch_embed" in name and arrays[prefix + name].ndim == 5 for name in names):
        return _VIDEO
    if title := next((title for title, pattern in OTHERS if any(re.search(pattern, name) for name in names)), ""):
        return title
    return _other_inside(arrays, prefix, names, rotary=family.rotary) if networks else ""


def _other_inside(arrays: Mapping[str, np.ndarray], prefix: str, names: Sequence[str], *, rotary: bool) -> str:
    """Return what a network with names of a known family is, if its arrays show that it is of another; "" otherwise."""
    for name in names:
        # timm packs the gate and what it multiplies into fc1.
        if name.endswith(".mlp.fc1.weight"):
            first, second = arrays[prefix + name], arrays.get(prefix + name.replace(".fc1.", ".fc2."))
            if second is not None and first.ndim == second.ndim == 2 and len(first) == 2 * second.shape[1]:
                return _GATED
    if rotary:
        return ""
    if any(name.endswith(".attn.q_bias") for name in names):
        return "EVA"
    return "" if any(map(_POSITIONS.search, names)) else "ViT without a table of positions that is no DINOv3"
