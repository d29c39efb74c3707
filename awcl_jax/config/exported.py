"""What a folder of `awcl_jax.export` says about its encoder, and the weights in it.

An export may be a stranger's: its numbers are limited before anything is allocated by them.
"""

import dataclasses
from pathlib import Path

from jaxtyping import PyTree

from awcl_jax.augment.options import Augmentation
from awcl_jax.config.export_files import DESCRIPTION, FORMAT, WEIGHTS
from awcl_jax.data.about import as_region
from awcl_jax.data.reader import LARGEST_FRAME
from awcl_jax.data.square import ASPECT, Square, require_aspect
from awcl_jax.models import encoders
from awcl_jax.models.resnet import WIDEST
from awcl_jax.models.vit import ViTOptions, option_problems
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import require_plain_tree
from awcl_jax.train.run_folder import read_json


@dataclasses.dataclass(frozen=True)
class Described:
    """An exported encoder in a few values.

    Attributes:
      square: how a frame is read.
      arch, width_factor, strides, vit: of the encoder, as in `config.model`.
      options: how a frame becomes the encoder's input.
      jax: version of JAX that wrote `encoder.jax`; empty if the file names none.
      region: part of pictures that its training frames are, as `data.about.About.region`.
    """

    square: Square
    arch: str
    width_factor: float
    strides: str
    options: Augmentation
    jax: str
    vit: ViTOptions
    region: str = ""

    def make_encoder(self) -> encoders.Encoder:
        """Return the encoder, without parameters."""
        return encoders.make_encoder(
            self.arch, size=self.options.size, width_factor=self.width_factor, strides=self.strides, vit=self.vit
        )


def read_description(folder: Path) -> Described:
    """Read what an exported folder says about its encoder.

    Raises:
      InputError: the file is damaged, or asks for more than an encoder needs; or a link is in the folder.
    """
    require_plain_tree(folder, links=False)
    file = folder / DESCRIPTION
    described = read_json(file)
    if described.get("format", 1) not in range(1, FORMAT + 1):
        raise InputError(
            f"The format in {file} must be at most {FORMAT}; got {described['format']!r}. Update awcl_jax."
        )
    try:
        size, mask_overlays = int(described["frames"]["size"]), described["frames"]["mask_overlays"]
        if not isinstance(mask_overlays, bool):
            raise TypeError("mask_overlays")
        aspect = require_aspect(described["frames"].get(ASPECT), file)
        encoder = described["encoder"]
        arch, width, strides = str(encoder["arch"]), float(encoder["width_factor"]), str(encoder["strides"])
        given = described["input"]
        options = Augmentation.off(size=int(given["size"]), mean=float(given["mean"]), std=float(given["std"]))
        vit = ViTOptions(**encoder.get("vit", {}))
        vit_problems = option_problems(vit)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} is not a file of awcl_jax.export. Export again.") from error
    for what, value, most in (("frames", size, LARGEST_FRAME), ("input", options.size, LARGEST_FRAME)):
        if not 1 <= value <= most:
            raise InputError(f"The size of the {what} in {file} must be from 1 to {most}; got {value}.")
    if not 0 < width <= WIDEST:
        raise InputError(f"width_factor in {file} must be above 0 and at most {WIDEST}; got {width}.")
    if vit_problems:
        raise InputError(f"{' '.join(vit_problems[0])} in {file}.")
    written_by = described.get("jax")
    jax = written_by if isinstance(written_by, str) else ""
    region = as_region(described["frames"].get("region"))
    return Described(Square(size, aspect, mask_overlays), arch, width, strides, options, jax, vit, region)


def read_weights(folder: Path, described: Described) -> dict[str, PyTree]:
    """Read `params` and `batch_stats` of an exported encoder from its safetensors.

    Raises:
      InputError: the folder has no such file, or it is damaged or of another encoder.
      OSError: it cannot be read.
    """
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{folder} has no {WEIGHTS}. Export again with --formats=safetensors, or use the run itself.")
    variables, _ = encoders.load_torch(
        weights,
        described.make_encoder(),
        arch=described.arch,
        width_factor=described.width_factor,
        mean=described.options.mean,
        std=described.options.std,
    )
    return variables
