"""The files of an exported encoder, except its model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from awcl_jax.export.jax_function import write_jax
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.resnet import make_resnet
from awcl_jax.models.weights import save_torch_resnet
from awcl_jax.train.run_folder import write_json
from awcl_jax.train.state import parameter_count

_TORCH_CODE = "encoder_torch.py"


def write(
    folder: Path,
    variables: Mapping[str, PyTree],
    *,
    arch: str,
    width_factor: float,
    strides: str,
    preprocessing: Preprocessing,
    formats: Sequence[str],
    channels: int,
) -> dict[str, Any]:
    """Write an encoder in several formats, and `preprocessing.json`.

    Args:
      folder: output folder.
      variables: `params` and `batch_stats` of `make_resnet(arch, width_factor=..., strides=...)` for grey frames.
      arch: of the encoder.
      width_factor: of the encoder.
      strides: of the encoder.
      preprocessing: of its frames.
      formats: any of `safetensors`, `onnx` and `jax`.
      channels: of conv1 in the safetensors, 1 or 3.

    Returns:
      The entry of the encoder in `preprocessing.json`: `arch`, `strides`, `width_factor`, `width` (features of conv1),
      `channels`, `features`, `parameters`.

    Raises:
      OSError: a file cannot be written.
    """
    model = make_resnet(arch, width_factor=width_factor, strides=strides)
    if "safetensors" in formats:
        path = folder / "encoder.safetensors"
        save_torch_resnet(path, variables, mean=preprocessing.mean, std=preprocessing.std, channels=channels)
        (folder / _TORCH_CODE).write_text(Path(__file__).with_name(_TORCH_CODE).read_text())
    if "onnx" in formats:
        from awcl_jax.export.onnx_graph import write_onnx

        write_onnx(folder / "encoder.onnx", variables, arch=arch, strides=strides, preprocessing=preprocessing)
    if "jax" in formats:
        write_jax(folder / "encoder.jax", model, variables, preprocessing)
    encoder = {
        "arch": arch,
        "strides": strides,
        "width_factor": width_factor,
        "width": model.width,
        "channels": channels,
        "features": model.width * 8 * (4 if arch == "resnet50" else 1),
        "parameters": parameter_count(variables["params"]),
    }
    # An older JAX may not read what this one serialises.
    versions = {"jax": jax.__version__} if "jax" in formats else {}
    write_json(folder / "preprocessing.json", {"encoder": encoder, **preprocessing.describe(), **versions})
    return encoder
