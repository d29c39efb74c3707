"""ConvNeXt (Liu et al. 2022) and ConvNeXt V2 (Woo et al. 2023) as in timm, for grey frames."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from awcl_jax.models.activations import gelu
from awcl_jax.models.dense import Dense, small
from awcl_jax.models.depthwise import convolve_depthwise
from awcl_jax.models.drop_path import draw_kept
from awcl_jax.models.parts import apply_block, kept_for_gradient
from awcl_jax.runtime.errors import InputError

STAGES = {"convnext_tiny": (3, 3, 9, 3), "convnext_small": (3, 3, 27, 3), "convnextv2_tiny": (3, 3, 9, 3)}
"""Name -> blocks in each stage."""

WIDTH = 96  # features of the first stage; each later one has twice as many
WIDEST = 64  # times the width of the paper
SMALLEST = 32  # pixels of an edge, of which one is left after the last stage
STEM = 4  # edge in pixels of the patches that the first layer takes
EPSILON = 1e-6  # added to the variance in each normalisation

_SCALE = 1e-6  # of what a block adds, at first
_GROUP = 3  # blocks with one learning rate, where it falls by layer


class Patches(nn.Module):
    """A convolution whose stride is its kernel's size: a matrix product over patches.

    Attributes:
      features: number of output features.
      size: edge of a patch.
      dtype: type of the arithmetic.
    """

    features: int
    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Return the maps; rows and columns beyond the last whole patch are left out, as in PyTorch."""
        b, h, w, c = x.shape
        rows, columns, p = h // self.size, w // self.size, self.size
        kernel = jnp.asarray(self.param("kernel", small, (p, p, c, self.features)), self.dtype)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)), self.dtype)
        x = x[:, : rows * p, : columns * p].astype(self.dtype)
        x = x.reshape(b, rows, p, columns, p, c).transpose(0, 1, 3, 2, 4, 5).reshape(-1, p * p * c)
        x = x @ kernel.reshape(-1, self.features) + bias.reshape(1, -1)
        return x.reshape(b, rows, columns, self.features)


class Depthwise(nn.Module):
    """A 7 x 7 convolution of each feature by itself.

    Attributes:
      dtype: type of the arithmetic.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the maps."""
        kernel = jnp.asarray(self.param("kernel", small, (7, 7, 1, x.shape[-1])), self.dtype)
        bias = jnp.asarray(self.param("bias", nn.initializers.zeros, (x.shape[-1],)), self.dtype)
        y = convolve_depthwise(x.astype(self.dtype), kernel)
        return kept_for_gradient(y + bias.reshape(1, 1, 1, -1))


class ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al. 2023, Eq. 1 to 3).

    y = x + scale * x * n + bias,    n_c = g_c / (mean of g over the features),    g_c = |x_c| over the picture
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Return the new maps."""
        weight, bias = (
            jnp.asarray(self.param(name, nn.initializers.zeros, (x.shape[-1],)), x.dtype).reshape(1, 1, 1, -1)
            for name in ("scale", "bias")
        )
        # The small number keeps the gradient of features without any response finite.
        squares = jnp.sum(x.astype(jnp.float32) ** 2, axis=(1, 2), keepdims=True)
        response = jnp.sqrt(squares + 1e-12)
        share = response / (response.mean(axis=-1, keepdims=True) + 1e-6)
        return x + weight * x * share.astype(x.dtype) + bias


class Block(nn.Module):
    """A depthwise convolution and a perceptron of every pixel, added to the maps.

    Attributes:
      second: as in version 2: with `ResponseNorm` in the perceptron, and without factors of what is added.
      dtype: type of the arithmetic.
    """

    second: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], kept: Float[Array, "b 1"] | None = None) -> Float[Array, "b h w c"]:
        """Return the new maps.

        Args:
          x: maps.
          kept: factors of what is added to each picture, 0 where it skips the block; None adds it unchanged.
        """
        c = x.shape[-1]
        y = _norm(self.dtype, "norm")(Depthwise(self.dtype, name="conv_dw")(x))
        y = gelu(kept_for_gradient(Dense(4 * c, self.dtype, name="fc1")(y)))
        if self.second:
            y = ResponseNorm(name="grn")(y)
        y = Dense(c, self.dtype, name="fc2")(y)
        if not self.second:
            gamma = jnp.asarray(self.param("gamma", nn.initializers.constant(_SCALE), (c,)), y.dtype)
            y = kept_for_gradient(y) * gamma.reshape(1, 1, 1, -1)
        return x + (y if kept is None else y * kept.astype(y.dtype).reshape(-1, 1, 1, 1))


class ConvNeXt(nn.Module):
    """Frames to features.

    Attributes:
      stage_sizes: blocks in each of the stages.
      width: features of the first stage; 96 in the paper.
      second: version 2.
      drop_path: probability that a picture skips the last block in training; it grows from 0 at the first.
      dtype: type of the arithmetic; parameters and features stay float32.
      remat: keep only the input of each block, and recompute the rest for the gradient (Chen et al. 2016). On a CPU
        activations and normalised maps are never kept.
      train_blocks: only so many blocks at the end, what is between them, and the last normalisation get a gradient;
        None for all. The others keep no activations.
      freeze_patches: the first layer's kernel and bias get no gradient.
    """

    stage_sizes: Sequence[int]
    width: int = WIDTH
    second: bool = False
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    train_blocks: int | None = None
    freeze_patches: bool = False

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(self.stage_sizes)

    @property
    def draws(self) -> bool:
        """Whether training needs keys."""
        return self.drop_path > 0

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Return the features of each frame: averaged over the picture, then normalised, in float32.

        Args:
          x: frames, of at least `SMALLEST` pixels in both directions.
          train: whether blocks are skipped, by `drop_path`.
          keys: of each frame, for the draws of `drop_path`; unused without it.
        """
        maps, norm = self._encode(x, train=train, keys=keys)
        return norm(maps[-1].astype(jnp.float32).mean(axis=(1, 2)))

    def maps(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ _"]]:
        """Return the maps of each stage, fine to coarse, at 1/4, 1/8, 1/16 and 1/32; arguments as for a call.

        A map's edge is the one before, halved and rounded down. The last map is normalised, as features are.
        """
        maps, norm = self._encode(x, train=train, keys=keys)
        return [*maps[:-1], norm(maps[-1].astype(jnp.float32))]

    @nn.compact
    def _encode(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None
    ) -> tuple[list[Float[Array, "b _ _ _"]], nn.LayerNorm]:
        """Return the maps of each stage, and the last normalisation."""
        if min(x.shape[1:3]) < SMALLEST:
            raise InputError(f"A picture's edges must be at least {SMALLEST} pixels; got {x.shape[1]} x {x.shape[2]}.")
        kept = draw_kept(keys, highest=self.drop_path, depth=self.depth) if train and self.draws else None
        x = Patches(self.width, STEM, self.dtype, name="stem_conv")(x)
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)
        x = _norm(self.dtype, "stem_norm")(x)
        maps: list[Array] = []
        done = 0
        for stage, blocks in enumerate(self.stage_sizes):
            if stage:
                x = _norm(self.dtype, f"stage{stage}_down_norm")(x)
                x = Patches(self.width * 2**stage, 2, self.dtype, name=f"stage{stage}_down_conv")(x)
            for i in range(blocks):
                if self.train_blocks == self.depth - done:
                    x, maps = jax.lax.stop_gradient((x, maps))
                block = Block(self.second, self.dtype, name=f"stage{stage}_block{i}")
                x = apply_block(block, x, None if kept is None else kept[:, done], remat=self.remat)
                done += 1
            maps.append(x)
        return maps, _norm(jnp.float32, "norm")


def make_convnext(
    arch: str,
    *,
    size: int,
    width_factor: float = 1.0,
    drop_path: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
    train_blocks: int | None = None,
    freeze_patches: bool = False,
) -> ConvNeXt:
    """Make an encoder by its name.

    Args:
      arch: "convnext_tiny", "convnext_small" or "convnextv2_tiny".
      size: edge in pixels of its frames; it takes any from `SMALLEST`.
      width_factor: multiplies the number of features in every layer.
      drop_path: as of `ConvNeXt`.
      dtype: type of the arithmetic.
      remat: recompute blocks for their gradient.
      train_blocks: as of `ConvNeXt`.
      freeze_patches: as of `ConvNeXt`.

    Raises:
      InputError: unknown architecture, or a value that is not possible.
    """
    if arch not in STAGES:
        raise InputError(f"The encoder must be one of {', '.join(STAGES)}; got {arch!r}.")
    depth = sum(STAGES[arch])
    rules = (
        ("width factor", width_factor, 0 < width_factor <= WIDEST, f"above 0 and at most {WIDEST}"),
        ("frames", size, size >= SMALLEST, f"at least {SMALLEST} pixels"),
        ("drop_path", drop_path, 0 <= drop_path < 1, "from 0 to below 1"),
        ("train_blocks", train_blocks, train_blocks is None or 1 <= train_blocks <= depth, f"from 1 to {depth}"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise InputError(f"A ConvNeXt's {name} must be {rule}; got {value}.")
    return ConvNeXt(
        stage_sizes=STAGES[arch],
        width=max(1, round(WIDTH * width_factor)),
        second=is_second(arch),
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
        train_blocks=train_blocks,
        freeze_patches=freeze_patches,
    )


def is_second(arch: str) -> bool:
    """Return whether an architecture is of version 2."""
    return arch.startswith("convnextv2_")


def layer_count(model: ConvNeXt) -> int:
    """Return the number of groups of three blocks within a stage, which share a learning rate."""
    return sum(-(-blocks // _GROUP) for blocks in model.stage_sizes)


def layer_of(path: tuple[str, ...], model: ConvNeXt) -> int:
    """Return the layer of a parameter of a model with this encoder: 0 of the stem, `layer_count` + 1 of the rest.

    Layers between are groups of three blocks, of which the first in a stage includes the downsampling before it, as in
    the published code for fine-tuning (12 layers of ConvNeXt-S).
    """
    if path[0] != "encoder" or path[1] == "norm":
        return layer_count(model) + 1
    if path[1].startswith("stem_"):
        return 0
    stage, part = _place(path)
    before = sum(-(-blocks // _GROUP) for blocks in model.stage_sizes[:stage])
    return before + 1 + (0 if part is None else part // _GROUP)


def frozen_parameters(model: ConvNeXt) -> Callable[[tuple[str, ...]], bool]:
    """Return which parameters of a model with this encoder get no gradient, by `train_blocks` and `freeze_patches`."""

    def frozen(path: tuple[str, ...]) -> bool:
        if path[0] != "encoder" or path[1] == "norm":
            return False
        if path[1].startswith("stem_"):
            return model.train_blocks is not None or (model.freeze_patches and path[1] == "stem_conv")
        if model.train_blocks is None:
            return False
        stage, part = _place(path)
        first, before = model.depth - model.train_blocks, sum(model.stage_sizes[:stage])
        # The downsampling is before the first block of its stage.
        return before <= first if part is None else before + part < first

    return frozen


def _place(path: tuple[str, ...]) -> tuple[int, int | None]:
    """Return the stage of a parameter, and its block; None of the downsampling before the first."""
    stage, _, part = path[1].removeprefix("stage").partition("_")
    return int(stage), int(part.removeprefix("block")) if part.startswith("block") else None


def _norm(dtype: Any, name: str) -> nn.LayerNorm:
    # The variance as E[(x - mean)^2], as PyTorch computes it: E[x^2] - mean^2 loses digits.
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)
