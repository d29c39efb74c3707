"""The encoder as a serialised function of `jax.export`: StableHLO that JAX alone runs, without this package."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array, Float, PyTree, UInt8

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import centre_view
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.encoders import Encoder

PLATFORMS = ("cpu", "cuda", "tpu")


def write_jax(path: Path, model: Encoder, variables: Mapping[str, PyTree], preprocessing: Preprocessing) -> None:
    """Write an encoder with its preprocessing: frames uint8 [batch, size, size] to features float32 [batch, f].

    Args:
      path: the file; `jax.export.deserialize` of its bytes returns the function, as `.call`.
      model: the encoder.
      variables: its `params` and `batch_stats`, which become part of the function.
      preprocessing: of its frames; `size` above is its `frame_size`.

    Raises:
      OSError: the file cannot be written.
    """
    options = Augmentation.off(size=preprocessing.input_size, mean=preprocessing.mean, std=preprocessing.std)

    def encode(frames: UInt8[Array, "b h w"]) -> Float[Array, "b f"]:
        features = model.apply(variables, centre_view(frames, options=options), train=False)
        assert isinstance(features, jax.Array)
        return features

    size = preprocessing.frame_size
    (batch,) = export.symbolic_shape("batch")
    frames = jax.ShapeDtypeStruct((batch, size, size), jnp.uint8)
    with _without_folders():
        path.write_bytes(export.export(jax.jit(encode), platforms=PLATFORMS)(frames).serialize())


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """Keep the folders of this machine out of what is lowered: MLIR names the source file of every operation."""
    before = jax.config.values["jax_hlo_source_file_canonicalization_regex"]
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    try:
        yield
    finally:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", before)
