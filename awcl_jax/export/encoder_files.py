"""The files of an exported encoder, except its model card."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from awcl_jax.export.jax_function import write_jax
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.convnext_weights import save_torch_convnext
from awcl_jax.models.encoders import feature_count, make_encoder
from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.models.vit_weights import save_torch_vit
from awcl_jax.models.weights import save_torch_resnet
from awcl_jax.train.run_folder import write_json
from awcl_jax.train.state import parameter_count

_TORCH_CODE = "encoder_torch.py"
_TORCH_CODE_OF = {ViT: "encoder_torch_vit.py", ConvNeXt: "encoder_torch_convnext.py"}  # written under that name


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
    vit: ViTOptions = ViTOptions(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Write an encoder in several formats, and `preprocessing.json`.

    Args:
      folder: output folder.
      variables: `params` and `batch_stats` of `make_encoder(arch, ...)` for grey frames.
      arch: of the encoder.
      width_factor: of the encoder.
      strides: of the encoder.
      preprocessing: of its frames.
      formats: any of `safetensors`, `onnx` and `jax`.
      channels: of the first kernel in the safetensors, 1 or 3.
      vit: options of a vision transformer.

    Returns:
      The entry of the encoder in `preprocessing.json`: `arch`, `strides`, `width_factor`, `width` (features of conv1,
      of a ConvNeXt's first stage, or of a token), `channels`, `features`, `parameters`; of a vision transformer also
      `depth`, `heads` and `vit`, of a ConvNeXt `stages` (blocks in each).

    Raises:
      OSError: a file cannot be written.
    """
    model = make_encoder(arch, size=preprocessing.input_size, width_factor=width_factor, strides=strides, vit=vit)
    if "safetensors" in formats:
        path = folder / "encoder.safetensors"
        normalised: dict[str, Any] = {"mean": preprocessing.mean, "std": preprocessing.std, "channels": channels}
        if isinstance(model, ViT):
            save_torch_vit(path, variables, model, **normalised)
        elif isinstance(model, ConvNeXt):
            save_torch_convnext(path, variables, **normalised)
        else:
            save_torch_resnet(path, variables, **normalised)
        code = Path(__file__).with_name(_TORCH_CODE_OF.get(type(model), _TORCH_CODE))
        (folder / _TORCH_CODE).write_text(code.read_text("utf-8"), encoding="utf-8")
    if "onnx" in formats:
        from awcl_jax.export.onnx_graph import write_onnx

        write_onnx(folder / "encoder.onnx", variables, model, arch=arch, strides=strides, preprocessing=preprocessing)
    if "jax" in formats:
        write_jax(folder / "encoder.jax", model, variables, preprocessing)
    encoder = {
        "arch": arch,
        "strides": strides,
        "width_factor": width_factor,
        "width": model.width,
        "channels": channels,
        "features": feature_count(model, arch),
        "parameters": parameter_count(variables["params"]),
    }
    if isinstance(model, ViT):
        encoder |= {"depth": model.depth, "heads": model.heads, "vit": dataclasses.asdict(vit)}
    if isinstance(model, ConvNeXt):
        encoder["stages"] = list(model.stage_sizes)
    # An older JAX may not read what this one serialises.
    versions = {"jax": jax.__version__} if "jax" in formats else {}
    write_json(folder / "preprocessing.json", {"encoder": encoder, **preprocessing.describe(), **versions})
    return encoder
