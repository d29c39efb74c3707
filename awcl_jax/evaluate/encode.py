"""Features of frames from a trained (or an untrained) encoder, over all devices of this process."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import centre_view
from awcl_jax.data.pipeline import Reader
from awcl_jax.data.square import Square
from awcl_jax.runtime import sharding

EncodeFn = Callable[[PyTree, Array], Array]


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder whose training has ended.

    Attributes:
      encode: (variables, uint8 frames [b, square.size, square.size]) -> features [b, f], compiled.
      variables: of the encoder.
      square: how its frames are made.
      origin: text that names the encoder.
      region: part of pictures that its training frames are, as `data.about.About.region`.
    """

    encode: EncodeFn
    variables: PyTree
    square: Square
    origin: str
    region: str = ""


@lru_cache(maxsize=8)
def make_encode(model: nn.Module, options: Augmentation) -> EncodeFn:
    """Compile the map from frames to features: no augmentation, running statistics of batch norm.

    Runs of one process with the same model and options compile it once.
    """

    @jax.jit
    def encode(variables: PyTree, frames: UInt8[Array, "b h w"]) -> Float[Array, "b f"]:
        features = model.apply(variables, centre_view(frames, options=options), method="features")
        assert isinstance(features, jax.Array)
        return features

    return encode


def encode_frames(
    encode: EncodeFn, variables: PyTree, reader: Reader, frames: Int[np.ndarray, " n"], *, batch_size: int
) -> Shaped[np.ndarray, "n ..."]:
    """Return features (or other outputs of a model) of frames, computed in batches.

    Args:
      encode: (variables, uint8 frames [b, h, w]) -> features [b, *f], compiled.
      variables: of the encoder.
      reader: pictures of the frames.
      frames: numbers of frames in the reader.
      batch_size: frames read and encoded at a time.

    Returns:
      features [n, *f] of the type that `encode` returns, in the order of `frames`.
    """
    parts = (frames[start : start + batch_size] for start in range(0, frames.size, batch_size))
    images = (reader.read(part) for part in parts)
    return np.concatenate(list(encode_batches(encode, variables, images, batch_size=batch_size)))


def encode_batches(
    encode: EncodeFn, variables: PyTree, batches: Iterable[UInt8[np.ndarray, "_ h w"]], *, batch_size: int
) -> Iterator[Shaped[np.ndarray, "_ ..."]]:
    """Yield features for each batch of frames; the next batch is read while the devices compute.

    Args:
      encode: (variables, uint8 frames [b, h, w]) -> features [b, *f], compiled.
      variables: of the encoder.
      batches: frames of one size, from one to `batch_size` at a time.
      batch_size: frames encoded at a time; rounded up to a multiple of this process's devices.
    """
    mesh = sharding.make_mesh(jax.local_devices())
    batch_size = -(-batch_size // mesh.size) * mesh.size
    variables = sharding.replicate(sharding.local_copy(variables), mesh)
    waiting: tuple[Array, int] | None = None
    for images in batches:
        # A short batch is padded with frames that are cut off again, so that only one shape is compiled.
        filled = np.resize(images, (batch_size, *images.shape[1:]))
        encoded = encode(variables, jax.device_put(filled, sharding.rows_over_devices(mesh)))
        if waiting is not None:
            yield np.asarray(waiting[0])[: waiting[1]]
        waiting = encoded, len(images)
    if waiting is not None:
        yield np.asarray(waiting[0])[: waiting[1]]
