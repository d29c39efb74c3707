"""Reads an encoder that `awcl_jax.export` wrote."""

from pathlib import Path

import jax
from jax import export
from jaxtyping import Array, Float, PyTree, UInt8

from awcl_jax.augment.views import Augmentation, centre_view
from awcl_jax.evaluate.encode import FrozenEncoder
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.weights import load_torch_resnet
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.run_folder import read_json

DESCRIPTION = "preprocessing.json"


def read_export(folder: Path) -> FrozenEncoder:
    """Read the encoder of an exported folder, from its safetensors or, without these, its `encoder.jax`.

    Raises:
      InputError: the folder has neither, or a file is damaged.
    """
    described = read_json(folder / DESCRIPTION)
    weights, function = folder / "encoder.safetensors", folder / "encoder.jax"
    try:
        size, mask_overlays = int(described["frames"]["size"]), bool(described["frames"]["mask_overlays"])
        encoder = described["encoder"]
        arch, width, strides = str(encoder["arch"]), float(encoder["width_factor"]), str(encoder["strides"])
        given = described["input"]
        options = Augmentation.off(size=int(given["size"]), mean=float(given["mean"]), std=float(given["std"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{folder / DESCRIPTION} is not a file of awcl_jax.export. Export again.") from error
    if weights.is_file():
        model = make_resnet(arch, width_factor=width, strides=strides)
        variables = load_torch_resnet(weights, arch, mean=options.mean, std=options.std, width_factor=width)

        @jax.jit
        def encode(variables: PyTree, frames: UInt8[Array, "b h w"]) -> Float[Array, "b f"]:
            features = model.apply(variables, centre_view(frames, options=options), train=False)
            assert isinstance(features, jax.Array)
            return features

        return FrozenEncoder(encode, variables, size, str(weights), mask_overlays)
    if function.is_file():
        try:
            exported = export.deserialize(bytearray(function.read_bytes()))
        except Exception as error:  # flatbuffers and MLIR raise many kinds
            raise InputError(f"{function} is damaged. Export again.") from error
        return FrozenEncoder(jax.jit(lambda _, frames: exported.call(frames)), {}, size, str(function), mask_overlays)
    raise InputError(
        f"{folder} has neither {weights.name} nor {function.name}. Export as safetensors, or use the run itself."
    )
