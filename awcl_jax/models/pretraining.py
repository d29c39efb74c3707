"""Encoder and projection, as pretraining trains them together."""

import flax.linen as nn
from jaxtyping import Array, Float


class ContrastiveModel(nn.Module):
    """Frames to features to unit embeddings; its parameters are `encoder` and `projection`."""

    encoder: nn.Module
    projection: nn.Module

    def __call__(self, frames: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b d"]:
        """Unit embeddings of each frame."""
        return self.projection(self.encoder(frames, train=train))

    def features(self, frames: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
        """What transfers to other tasks: the encoder's features, with the running statistics of batch norm."""
        return self.encoder(frames, train=False)
