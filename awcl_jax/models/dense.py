"""A linear layer of every token or pixel."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

small = nn.initializers.truncated_normal(0.02)
"""Draws the kernels of vision transformers and ConvNeXts."""


class Dense(nn.Module):
    """A linear layer of every token or pixel, or only some of its features.

    Attributes:
      features: number of outputs.
      dtype: type of the arithmetic.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*places d"], part: slice = slice(None)) -> Float[Array, "*places f"]:
        """Return the outputs, or a `part` of them."""
        kernel = self.param("kernel", small, (x.shape[-1], self.features))
        bias = self._bias()
        kernel, bias = kernel[:, part].astype(self.dtype), bias[part].astype(self.dtype)
        # A matrix of all places: of a sum over several dimensions, the kernel's gradient, XLA copies the operands.
        y = x.astype(self.dtype).reshape(-1, x.shape[-1]) @ kernel + bias.reshape(1, -1)
        return y.reshape(*x.shape[:-1], -1)

    def _bias(self) -> Float[Array, " f"]:
        return jnp.asarray(self.param("bias", nn.initializers.zeros, (self.features,)))
