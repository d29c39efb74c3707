"""Features of frames from a trained (or an untrained) encoder, over all devices of this process."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from awcl_jax import sharding
from awcl_jax.data.pipeline import Reader

EncodeFn = Callable[[PyTree, Array], Array]


def encode_frames(
    encode: EncodeFn, variables: PyTree, reader: Reader, frames: Int[np.ndarray, " n"], *, batch_size: int
) -> Shaped[np.ndarray, "n ..."]:
    """Features of frames, or what else a model makes of each, a batch at a time.

    Args:
      encode: (variables, uint8 frames [b, h, w]) -> features [b, *f], compiled.
      variables: of the encoder.
      reader: pictures of the frames.
      frames: which frames, as the reader counts them.
      batch_size: frames a time; rounded up to a multiple of this process's devices.

    Returns:
      features [n, *f] of the type that `encode` gives, in the order of `frames`.
    """
    mesh = sharding.make_mesh(jax.local_devices())
    batch_size = -(-batch_size // mesh.size) * mesh.size
    variables = sharding.replicate(sharding.local_copy(variables), mesh)
    features = []
    for start in range(0, frames.size, batch_size):
        part = frames[start : start + batch_size]
        # The last batch is filled up with frames that are cut off again, so that one shape is compiled.
        filled = np.resize(part, batch_size)
        features.append(
            np.asarray(encode(variables, jax.device_put(reader.read(filled), sharding.rows_over_devices(mesh))))[
                : part.size
            ]
        )
    return np.concatenate(features)
