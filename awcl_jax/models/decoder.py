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
    """

    classes: int
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "b _ _ _"]], size: tuple[int, ...], *, train: bool
    ) -> Float[Array, "b h w k"]:
        """Return the logits of every pixel, in float32.

        Args:
          maps: from `ResNet.maps`, fine to coarse.
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


def _enlarge(x: Float[Array, "b h w c"], size: tuple[int, ...]) -> Float[Array, "b h2 w2 c"]:
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")
