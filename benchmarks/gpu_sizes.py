"""How much `benchmarks.on_gpu` measures, and what its parts are called with.

A part calls `add(what, unit, values)` for every line of the table as soon as it has it, and `note(text)` for what is no
number.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from awcl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
      arch: part -> encoder.
      width: width factor of the encoders.
      pixels: edge of a view.
      stored: edge of a stored frame.
      batch: frames of a step that is compared with PyTorch's.
      read: frames of a step that reads its data.
      dtype: of the arithmetic of steps.
      turns, steps: of each way, and steps of a turn.
      rows: of the loss, in order of worth.
      dense: the most rows that have the whole matrix.
      blocks: anchors in a block that are tried, at the first number of rows.
      edge: of the matrices that show the peak; by default as `peak.jax_product`.
      copied: numbers of the array that shows the bandwidth.
    """

    arch: Mapping[str, str]
    width: float
    pixels: int
    stored: int
    batch: int
    read: int
    dtype: str
    turns: int
    steps: int
    rows: Sequence[int]
    dense: int
    blocks: Sequence[int]
    edge: int | None
    copied: int


FULL = Sizes(
    arch={"step-resnet18": "resnet18", "step-resnet50": "resnet50", "step-vit_base": "vit_base"},
    width=1.0,
    pixels=224,
    stored=256,
    batch=128,
    read=256,
    dtype="bfloat16",
    turns=5,
    steps=10,
    rows=(65536, 8192, 32768, 262144, 1048576),
    dense=32768,
    blocks=(1024, 4096),
    edge=None,
    copied=2**28,
)

# One small network for all steps, whose program is compiled once.
REHEARSAL = Sizes(
    arch={"step-resnet18": "resnet18", "step-resnet50": "resnet18", "step-vit_base": "vit_tiny"},
    width=0.0625,
    pixels=32,
    stored=40,
    batch=8,
    read=8,
    dtype="float32",
    turns=2,
    steps=1,
    rows=(256, 512),
    dense=256,
    blocks=(64,),
    edge=256,
    copied=2**20,
)

Add = Callable[[str, str, Sequence[float]], None]
Note = Callable[[str], None]


class NoGpuError(InputError):
    """JAX has no GPU: nothing can be measured."""
