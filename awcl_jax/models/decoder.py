"""The decoder from an encoder's feature maps to a segmentation: the right half of a U-Net (Ronneberger et al. 2015)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax.models.resnet import Conv


class UNetDecoder(nn.Module):
    """From the coarsest map up: enlarge, join the encoder's map of that size, convolve twice; last at full size.

    Maps are enlarged to exactly the size of the next, so frames of any size work, not only multiples of 32.

    Attributes:
      classes: k, of the segmentation, including the background.
      width: features of the encoder's first stage, w. The decoder has 4w, 2w, w, w/2 and w/4 from coarse to fine; for
        w = 64 as many as the decoders of segmentation_models_pytorch.
      dtype: type of the arithmetic.
      axis_name: mesh axis over which batch norm synchronises.
      pyramid: make a pyramid of the last map first, for an encoder with one map: a vision transformer.
    """

    classes: int
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None
    pyramid: bool = False

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]], size: tuple[int, ...], *, train: bool
    ) -> Float[Array, "b h w k"]:
        """Return the logits of every pixel, in float32.

        Args:
          maps: of an encoder (`maps`), fine to coarse.
          size: height and width of the frames.
          train: whether batch norm uses the batch or the running statistics.
        """
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
        )
        if self.pyramid:
            maps = FeaturePyramid(4 * self.width, dtype=self.dtype, name="pyramid")(maps[-1])
        x, skips = maps[-1], [*reversed(maps[:-1]), None]
        for level, skip in enumerate(skips):
            x = _enlarge(x, size if skip is None else skip.shape[1:3])
            if skip is not None:
                x = jnp.concatenate([x, skip], axis=-1)
            features = max(4, int(self.width * 2.0 ** (2 - level)))
            for i in (1, 2):
                x = Conv(features, (3, 3), padding=1, dtype=self.dtype, name=f"up{level}_conv{i}")(x)
                x = nn.relu(norm(name=f"up{level}_bn{i}")(x))
        return nn.Dense(self.classes, name="out")(x).astype(jnp.float32)


class FeaturePyramid(nn.Module):
    """Maps of four sizes from the last one of a vision transformer (the simple pyramid of Li et al. 2022, Sec. 3).

    Attributes:
      features: of each map.
      dtype: type of the arithmetic.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> list[Float[Array, "b _ _ features"]]:
        """Return maps of 4, 2, 1 and 1/2 times the edges of `x`, fine to coarse."""
        x = x.astype(self.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=self.dtype, use_fast_variance=False)
        up = functools.partial(nn.ConvTranspose, kernel_size=(2, 2), strides=(2, 2), dtype=self.dtype)
        half, quarter = max(1, x.shape[-1] // 2), max(1, x.shape[-1] // 4)
        finer = nn.gelu(norm(name="up4_norm")(up(half, name="up4_0")(x)))
        # A map of one row or column is not halved.
        window = tuple(min(2, edge) for edge in x.shape[1:3])
        maps = [
            up(quarter, name="up4_1")(finer),
            up(half, name="up2")(x),
            x,
            nn.max_pool(x, window, strides=window),
        ]
        return [
            norm(name=f"norm{level}")(nn.Dense(self.features, dtype=self.dtype, name=f"out{level}")(m))
            for level, m in enumerate(maps)
        ]


def _enlarge(x: Float[Array, "b h w c"], size: tuple[int, ...]) -> Float[Array, "b h2 w2 c"]:
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
