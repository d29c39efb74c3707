"""Encoder and projection, trained together in pretraining."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


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


class ContrastiveModel(nn.Module):
    """Frames to features to unit embeddings; its parameters are `encoder` and `projection`."""

    encoder: nn.Module
    projection: nn.Module

    def __call__(self, frames: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b d"]:
        """Return the unit embedding of each frame."""
        return self.projection(self.encoder(frames, train=train))

    def features(self, frames: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        """Return the features for other tasks: the encoder's, with the running statistics of batch norm."""
        return self.encoder(frames, train=False)
