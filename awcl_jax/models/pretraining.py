"""Encoder and projection, trained together in pretraining."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class Projection(nn.Module):
    """Features to unit embeddings by a perceptron with one hidden layer (Chen et al. 2020, Sec. 2.1).

    Attributes:
      hidden: width of the hidden layer; by default that of the features, as in the published AWCL code.
      embedding: d, the width of the embedding.
    """

    hidden: int | None = None
    embedding: int = 128

    @nn.compact
    def __call__(self, features: Float[Array, "b f"]) -> Float[Array, "b d"]:
        """Return the unit embedding of each frame, in float32."""
        x = nn.relu(nn.Dense(self.hidden or features.shape[-1], name="hidden")(features))
        x = nn.Dense(self.embedding, name="out")(x)
        # The small term keeps the gradient of a zero vector finite; it does not change embeddings of ordinary length.
        return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-12)


def with_keys(encoder: Any, keys: Key[Array, " b"] | None) -> dict[str, Any]:
    """Return the keyword `keys` for an encoder that draws random numbers in training, and no keyword for another."""
    return {"keys": keys} if getattr(encoder, "draws", False) else {}


class ContrastiveModel(nn.Module):
    """Frames to features to unit embeddings; its parameters are `encoder` and `projection`."""

    encoder: nn.Module
    projection: nn.Module

    def __call__(
        self, frames: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b d"]:
        """Return the unit embedding of each frame; keys are for an encoder that `draws`."""
        return self.projection(self.encoder(frames, train=train, **with_keys(self.encoder, keys)))

    def features(self, frames: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        """Return the features for other tasks: the encoder's, with the running statistics of batch norm."""
        return self.encoder(frames, train=False)
