"""An encoder with the head or decoder of a downstream task; parameters are `encoder` and `head` or `decoder`."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Key

from awcl_jax.models.decoder import UNetDecoder
from awcl_jax.models.encoders import Encoder
from awcl_jax.models.pretraining import with_keys


class Classifier(nn.Module):
    """Frames to logits by one linear layer on the features.

    Attributes:
      encoder: computes the features.
      classes: k.
      frozen: the encoder gets no gradient and keeps its running statistics while the head is trained.
    """

    encoder: Encoder
    classes: int
    frozen: bool = False

    @nn.compact
    def __call__(
        self, frames: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b k"]:
        """Return the logits of each frame; keys are for an encoder that `draws`."""
        features = self.encoder(frames, train=train and not self.frozen, **with_keys(self.encoder, keys))
        if self.frozen:
            features = jax.lax.stop_gradient(features)
        return nn.Dense(self.classes, name="head")(features)


class Segmenter(nn.Module):
    """Frames to logits of their pixels by a U-Net decoder on the encoder's maps.

    Attributes:
      encoder: computes the maps.
      decoder: turns them into logits.
      frozen: as in `Classifier`.
    """

    encoder: Encoder
    decoder: UNetDecoder
    frozen: bool = False

    def __call__(
        self, frames: Float[Array, "b h w c"], *, train: bool, keys: Key[Array, " b"] | None = None
    ) -> Float[Array, "b h w k"]:
        """Return the logits of each pixel; keys are for an encoder that `draws`."""
        maps = self.encoder.maps(frames, train=train and not self.frozen, **with_keys(self.encoder, keys))
        if self.frozen:
            maps = jax.lax.stop_gradient(maps)
        return self.decoder(maps, frames.shape[1:3], train=train)
