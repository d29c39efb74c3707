"""Shapes of a network's variables, without computing them."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import PyTree


@functools.lru_cache(maxsize=128)
def variable_shapes(model: nn.Module, edge: int, channels: int) -> dict[str, PyTree]:
    """Return the variables of an encoder as `jax.ShapeDtypeStruct`s; do not change them.

    They are kept for the next call, because tracing takes a third of a second and more.

    Args:
      model: the encoder.
      edge: of a frame in pixels; the smallest that it takes is enough where no shape depends on it.
      channels: of a frame.
    """
    frame = jnp.zeros((1, edge, edge, channels))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), frame, train=False))
