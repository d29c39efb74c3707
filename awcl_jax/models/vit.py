"""Vision transformers (Dosovitskiy et al. 2021) of the kinds that published weights are for, for grey frames."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from awcl_jax.models.activations import ACTIVATIONS
from awcl_jax.models.attention import attend
from awcl_jax.models.dense import Dense, small
from awcl_jax.models.drop_path import draw_kept
from awcl_jax.models.parts import apply_block, kept_for_gradient
from awcl_jax.models.positions import resample_weights
from awcl_jax.models.rotary import turn
from awcl_jax.runtime.errors import InputError

SIZES = {"vit_tiny": (12, 3), "vit_small": (12, 6), "vit_base": (12, 12), "vit_large": (24, 16)}
"""Name -> blocks, and heads of 64 features each."""

PATCHES = (8, 14, 16)
POOLS = ("token", "mean", "both")
HEAD = 64  # features of a head, in all of these networks
WIDEST = 16  # times the width of the paper


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """What differs between vision transformers of one size.

    Attributes:
      patch: edge in pixels of the patches.
      registers: further tokens without an output (Darcet et al. 2024).
      layer_scale: each block's two outputs are multiplied by learned factors (Touvron et al. 2021).
      pre_norm: the tokens are normalised before the first block, too, and patches have no bias (CLIP).
      activation: one of ACTIVATIONS; quick_gelu is that of OpenAI's CLIP.
      epsilon: added to the variance in each normalisation.
      pool: features are the class token (token), the mean of the patches (mean), or the two side by side (both).
      norm_after: the last normalisation follows the pooling (timm's `fc_norm`), instead of preceding it.
      drop_path: probability that a picture skips half of the last block in training; it grows from 0 at the first.
      rotary: queries and keys of patches are turned by their places (DINOv3), instead of a table of positions; keys
        have no bias.
    """

    patch: int = 16
    registers: int = 0
    layer_scale: bool = False
    pre_norm: bool = False
    activation: str = "gelu"
    epsilon: float = 1e-6
    pool: str = "token"
    norm_after: bool = False
    drop_path: float = 0.0
    rotary: bool = False


class DenseWithoutKeyBias(Dense):
    """A linear layer to queries, keys and values side by side, without a bias for keys.

    A bias of keys adds the same number to all products of a query, which the softmax ignores; with rotary positions it
    does not.
    """

    def _bias(self) -> Float[Array, " f"]:
        each = (self.features // 3,)
        q, v = (self.param(name, nn.initializers.zeros, each) for name in ("q_bias", "v_bias"))
        return jnp.concatenate([q, jnp.zeros(each), v])


class Attention(nn.Module):
    """Self-attention of several heads over the tokens of a picture.

    Attributes:
      heads: number of heads.
      dtype: type of the arithmetic; the softmax is float32.
      turned: rows and columns of the patches for rotary positions (`models.rotary`); None without them.
    """

    heads: int
    dtype: Any = jnp.float32
    turned: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], first: int | None = None) -> Float[Array, "b t2 d"]:
        """Return the tokens' mixture; of all tokens for the `first` ones, if given, which are before the patches."""
        b, _, width = x.shape
        project = (DenseWithoutKeyBias if self.turned else Dense)(3 * width, self.dtype, name="qkv")
        if first is None:
            parts = jnp.split(kept_for_gradient(project(x)), 3, axis=-1)
        else:
            others = kept_for_gradient(project(x, slice(width, None)))
            parts = [project(x[:, :first], slice(width)), *jnp.split(others, 2, axis=-1)]
        q, k, v = (part.reshape(b, -1, self.heads, width // self.heads) for part in parts)
        if self.turned:
            q, k = (q if first is not None else turn(q, self.turned)), turn(k, self.turned)
        mixed = attend(q, k, v).reshape(b, -1, width)
        return Dense(width, self.dtype, name="proj")(kept_for_gradient(mixed))


class Perceptron(nn.Module):
    """Two layers of every token, four times as wide between them.

    Attributes:
      activation: between the layers.
      dtype: type of the arithmetic.
    """

    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the new tokens."""
        y = kept_for_gradient(Dense(4 * x.shape[-1], self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], self.dtype, name="fc2")(ACTIVATIONS[self.activation](y))


class Scale(nn.Module):
    """Learned factors of the features."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Return the scaled tokens."""
        gamma = self.param("gamma", nn.initializers.constant(1e-5), (x.shape[-1],))
        return x * gamma.astype(x.dtype).reshape(1, 1, -1)


class Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them.

    Attributes:
      heads: of the attention.
      options: of the network.
      dtype: type of the arithmetic.
      first: only so many tokens at the beginning are returned, and only what they need is computed; None for all.
      turned: as of `Attention`.
    """

    heads: int
    options: ViTOptions
    dtype: Any = jnp.float32
    first: int | None = None
    turned: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"], kept: Float[Array, "b 2"] | None = None) -> Float[Array, "b t2 d"]:
        """Return the new tokens.

        Args:
          x: tokens.
          kept: factors of each picture's two additions, 0 where it skips one; None adds both unchanged.
        """
        y = Attention(self.heads, self.dtype, self.turned, name="attn")(self._norm(1, x), self.first)
        x = kept_for_gradient(x[:, : self.first] + self._weighted(1, y, kept))
        y = Perceptron(self.options.activation, self.dtype, name="mlp")(self._norm(2, x))
        return x + self._weighted(2, y, kept)

    def _norm(self, half: int, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return _norm(self.options.epsilon, self.dtype, f"norm{half}")(x)

    def _weighted(self, half: int, y: Float[Array, "b t d"], kept: Float[Array, "b 2"] | None) -> Float[Array, "b t d"]:
        if self.options.layer_scale:
            y = Scale(name=f"ls{half}")(y)
        return y if kept is None else y * kept[:, half - 1].astype(y.dtype).reshape(-1, 1, 1)


class ViT(nn.Module):
    """Frames to features.

    The tokens are the class token, registers and patches, in this order. The class token's parameter contains its
    position. Positions of the patches are a table that is resampled (`models.positions`, antialiased) where a frame
    has another number of patches, or rotary (`models.rotary`).

    Attributes:
      depth: number of blocks.
      heads: of each block; the tokens have 64 features for each head.
      grid: rows and columns of the table of positions; unused if positions are rotary.
      options: of the network.
      dtype: type of the arithmetic; parameters and features stay float32.
      remat: keep only the input of each block, and recompute the rest for the gradient (Chen et al. 2016). On a CPU
        attention's weights, activations and normalised tokens are never kept.
      train_blocks: only so many blocks at the end, and the last normalisation, get a gradient; None for all. The
        others keep no activations.
      freeze_patches: the patches' kernel gets no gradient (Chen et al. 2021).
    """

    depth: int
    heads: int
    grid: tuple[int, int]
    options: ViTOptions = ViTOptions()
    dtype: Any = jnp.float32
    remat: bool = False
    train_blocks: int | None = None
    freeze_patches: bool = False

    @property
    def width(self) -> int:
        """Number of features of a token, d."""
        return HEAD * self.heads

    @property
    def patch(self) -> int:
        """Edge in pixels of a patch."""
        return self.options.patch

    @property
    def draws(self) -> bool:
        """Whether training needs keys."""
        return self.options.drop_path > 0

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return 1 + self.options.registers

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b f"]:
        """Return the features of each frame, in float32.

        Args:
          x: frames, of a multiple of `options.patch` pixels in both directions.
          train: whether blocks are skipped, by `options.drop_path`.
          keys: of each frame, for the draws of `drop_path`; unused without it.
        """
        return self._encode(x, train=train, keys=keys, pooled=True)

    def maps(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> list[Float[Array, "b _ _ d"]]:
        """Return the patches as the only feature map, of 1 / `options.patch` of the frame's edges."""
        rows, columns = (edge // self.patch for edge in x.shape[1:3])
        patches = self.tokens(x, train=train, keys=keys)[:, self.prefix :]
        return [patches.reshape(x.shape[0], rows, columns, self.width)]

    def tokens(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b t d"]:
        """Return the tokens after the last block and normalisation, in float32; arguments as for a call."""
        return self._encode(x, train=train, keys=keys, pooled=False)

    @nn.compact
    def _encode(
        self, x: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None, pooled: bool
    ) -> Float[Array, "b f"] | Float[Array, "b t d"]:
        turned = (x.shape[1] // self.patch, x.shape[2] // self.patch) if self.options.rotary else None
        x = self._embed(x)
        if self.options.pre_norm:
            x = _norm(self.options.epsilon, self.dtype, "norm_pre")(x)
        kept = None
        if train and self.draws:
            kept = draw_kept(keys, highest=self.options.drop_path, depth=self.depth, halves=2)
        for i in range(self.depth):
            if self.train_blocks == self.depth - i:
                x = jax.lax.stop_gradient(x)
            # Features of the class token need the others only as keys and values of the last block.
            only_token = pooled and self.options.pool == "token" and i == self.depth - 1
            first = 1 if only_token else None
            block = Block(self.heads, self.options, self.dtype, first, turned, name=f"blocks_{i}")
            x = apply_block(block, x, None if kept is None else kept[:, i], remat=self.remat)
        x, norm = x.astype(jnp.float32), _norm(self.options.epsilon, jnp.float32, "norm")
        if not pooled:
            return norm(x)
        return norm(self._pool(x)).reshape(x.shape[0], -1) if self.options.norm_after else self._pool(norm(x))

    def _pool(self, x: Float[Array, "b t d"]) -> Float[Array, "b f"] | Float[Array, "b 2 d"]:
        """Return the features; if they will be normalised, the two of `both` are still apart."""
        cls, mean = x[:, 0], x[:, self.prefix :].mean(axis=1)
        join = jnp.stack if self.options.norm_after else jnp.concatenate
        return {"token": cls, "mean": mean}[self.options.pool] if self.options.pool != "both" else join([cls, mean], 1)

    def _embed(self, x: Float[Array, "b h w c"]) -> Float[Array, "b t d"]:
        """Return the tokens before the first block."""
        (b, h, w, c), p, width = x.shape, self.patch, self.width
        if h % p or w % p:
            raise InputError(f"A picture's edges must be multiples of the patch of {p} pixels; got {h} x {w}.")
        kernel = self.param("patch_kernel", nn.initializers.lecun_normal(), (p, p, c, width))
        rows, columns = h // p, w // p
        # A convolution whose stride is its kernel's size is a matrix product over patches.
        patches = x.astype(self.dtype).reshape(b, rows, p, columns, p, c).transpose(0, 1, 3, 2, 4, 5)
        x = patches.reshape(-1, p * p * c) @ kernel.astype(self.dtype).reshape(-1, width)
        x = x.reshape(b, rows * columns, width)
        if not self.options.pre_norm:
            bias = self.param("patch_bias", nn.initializers.zeros, (width,))
            x = x + bias.astype(self.dtype).reshape(1, 1, -1)
        if self.freeze_patches:
            x = jax.lax.stop_gradient(x)
        if not self.options.rotary:
            x = x + self._positions((rows, columns)).astype(self.dtype).reshape(1, -1, width)
        first = [self.param("cls_token", small, (width,)).reshape(1, width)]
        if self.options.registers:
            first.append(self.param("reg_token", small, (self.options.registers, width)))
        before = jnp.concatenate(first).astype(self.dtype)[None]
        return jnp.concatenate([jnp.broadcast_to(before, (b, *before.shape[1:])), x], axis=1)

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "rows columns d"]:
        table = jnp.asarray(self.param("pos_embed", small, (*self.grid, self.width)))
        if grid == self.grid:
            return table
        down, across = (
            resample_weights(n, m, way="antialiased").astype(np.float32) for n, m in zip(self.grid, grid, strict=True)
        )
        return jnp.einsum("ai,bj,ijd->abd", down, across, table)


def make_vit(
    arch: str,
    *,
    size: int,
    options: ViTOptions = ViTOptions(),
    width_factor: float = 1.0,
    dtype: Any = jnp.float32,
    remat: bool = False,
    train_blocks: int | None = None,
    freeze_patches: bool = False,
) -> ViT:
    """Make an encoder by its name.

    Args:
      arch: one of SIZES.
      size: edge in pixels of the frames that it is trained on, which sets the table of positions.
      options: of the network.
      width_factor: multiplies the number of heads.
      dtype: type of the arithmetic.
      remat: recompute blocks for their gradient.
      train_blocks: as of `ViT`.
      freeze_patches: as of `ViT`.

    Raises:
      InputError: unknown architecture, or the options do not fit each other or the size.
    """
    if problems := [*option_problems(options), *_problems(arch, size, options.patch, width_factor, train_blocks)]:
        raise InputError(f"A vision transformer's {problems[0][0]} {problems[0][1]}.")
    depth, heads = SIZES[arch]
    heads = max(1, round(heads * width_factor))
    grid = (size // options.patch,) * 2
    return ViT(depth, heads, grid, options, dtype, remat, train_blocks, freeze_patches)


def layer_of(path: tuple[str, ...], *, depth: int) -> int:
    """Return the layer of a parameter of a model: 0 of patches and tokens, 1 to `depth` of blocks, then of the rest.

    As in BEiT (Bao et al. 2022) and MAE, whose learning rate falls by a factor with each layer from the last.
    """
    if path[0] != "encoder" or path[1] == "norm":
        return depth + 1
    return int(path[1].removeprefix("blocks_")) + 1 if path[1].startswith("blocks_") else 0


def frozen_parameters(model: ViT) -> Callable[[tuple[str, ...]], bool]:
    """Return which parameters of a model with this encoder get no gradient, by `train_blocks` and `freeze_patches`."""
    trained = model.depth if model.train_blocks is None else model.train_blocks

    def frozen(path: tuple[str, ...]) -> bool:
        layer = layer_of(path, depth=model.depth)
        if model.freeze_patches and path[:2] in (("encoder", "patch_kernel"), ("encoder", "patch_bias")):
            return True
        return model.train_blocks is not None and layer <= model.depth - trained

    return frozen


def option_problems(options: ViTOptions) -> list[tuple[str, str]]:
    """Return (field, what it must be) for each option that is wrong."""
    rules = (
        ("patch", options.patch in PATCHES, f"one of {', '.join(map(str, PATCHES))}"),
        ("registers", 0 <= options.registers <= 64, "from 0 to 64"),
        ("activation", options.activation in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        ("epsilon", 0 < options.epsilon < 1, "between 0 and 1"),
        ("pool", options.pool in POOLS, f"one of {', '.join(POOLS)}"),
        ("drop_path", 0 <= options.drop_path < 1, "from 0 to below 1"),
        ("rotary", not (options.rotary and options.pre_norm), "False with pre_norm, whose patches have no bias"),
    )
    return [(field, f"must be {rule}; got {getattr(options, field)!r}") for field, holds, rule in rules if not holds]


def _problems(arch: str, size: int, patch: int, width_factor: float, train_blocks: int | None) -> list[tuple[str, str]]:
    if arch not in SIZES:
        return [("arch", f"must be one of {', '.join(SIZES)}; got {arch!r}")]
    found = []
    if not 0 < width_factor <= WIDEST:
        found.append(("width factor", f"must be above 0 and at most {WIDEST}; got {width_factor}"))
    if size < patch or size % patch:
        found.append(("frames", size_rule(size, patch)))
    if train_blocks is not None and not 1 <= train_blocks <= SIZES[arch][0]:
        found.append(("train_blocks", f"must be from 1 to its {SIZES[arch][0]} blocks; got {train_blocks}"))
    return found


def size_rule(size: int, patch: int) -> str:
    """Return in words that a picture's edge must be a multiple of the patch, and the nearest such edges."""
    below, above = size // patch * patch, -(-max(size, 1) // patch) * patch
    near = f"{below} or {above}" if below else f"{above}"
    return f"must be a multiple of the patch of {patch} pixels; got {size}, try {near}"


def _norm(epsilon: float, dtype: Any, name: str) -> nn.LayerNorm:
    # The variance as E[(x - mean)^2], as PyTorch computes it: E[x^2] - mean^2 loses digits.
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)
