"""Estimate the pretraining step on many chips: count what it moves and multiplies, check that, compute the time.

python -m benchmarks.scaling --out=DIR

The step of a ResNet-50 at 224 pixels with the default batch of 32 frames a chip is compiled for 1, 2, 4 and 8 devices
(a CPU acts as all, each count in a separate process). The bytes of its collectives and the operations of its
convolutions and matrix products are read from the compiled program and must be these, to the byte and the operation; if
they are not, the exit status is 1. For n devices with b frames, hence a = 2b rows of d numbers each, P parameters, and
C channels in all layers of batch norm, in float32:

    all-reduce          4 (P + 3C - S + 2 d m + 1)  gradients; for batch norm two sums a channel forward and three
                                                    backward, of which the gradients of its scale and bias come, less
                                                    one for the S channels of shortcuts, whose bias has the same
                                                    gradient as that of the block; m rows for the monitors; the loss
    gather  all-gather      n a (4d + 8)            the rows, their ids and groups
            reduce-scatter  n a 4d                  the rows' gradient
    ring    permute         n a (4d + 8 + 8d + 8)   the same on their way, and once more with the gradient

    encoder     3 x 2a sum k (pairs of a pixel and a tap that is not padding) c_in c_out    (the first layer 2 x)
    projection  3 x 2a (f h + h d)
    loss        gather 3 x 2 a n a d        similarities and both sides of their gradient
                ring   4 x 2 a n a d        the same, and the similarities again for the gradient
    monitors    2 x 2 m m d                 of m = min(n b, 1024) frames, on every device

XLA counts every collective once, as one device sees it, not once a hop (`benchmarks.compiled`); how many times the wire
carries it is in `benchmarks.hardware`. On one device the program has all-reduces that move nothing, and the loss
uses symmetry (2 x 2 a a d). Augmentation is left out (0.1% of the operations).

From these formulas the time of a step is worked out for up to 4,096 chips from published peaks and bandwidths, with the
assumptions of `benchmarks.hardware`: the encoder in bfloat16 at a share of the peak, the loss in float32 at its own;
nothing overlaps but a hop of the ring with the products of the rows that came before. None of it was measured.
"""

import argparse
import dataclasses
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from awcl_jax.runtime import figures
from awcl_jax.runtime.cli import exit_on_bad_input
from awcl_jax.runtime.errors import InputError
from awcl_jax.runtime.files import write_whole
from benchmarks import hardware
from benchmarks.hardware import CHIPS, Chip
from benchmarks.own_process import in_own_process

EXCHANGES = ("gather", "ring")
COUNTS = (1, 8, 64, 256, 1024, 4096)
_MEASURED = {"gather": (1, 2, 4, 8), "ring": (2, 4, 8)}  # one device has no neighbour
_MONITORED = 1024
_MEMORY_SHARE = 0.1


def main() -> None:
    """Compile, compare, extrapolate; write a table and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32, help="frames of a chip")
    parser.add_argument("--out", type=Path, help="folder for scaling.md and scaling.png")
    parser.add_argument("--measure", nargs=2, metavar=("EXCHANGE", "DEVICES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.frames < 1:
        raise InputError(f"--frames must be >= 1; got {args.frames}.")
    if args.measure:
        import jax

        exchange, devices = args.measure[0], int(args.measure[1])
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
        print(json.dumps(measure(exchange, devices, args.frames, **_resnet50())))
        return
    network: dict[str, int] = {}
    lines = [_row("exchange", "devices", "collective", "bytes, compiled", "formula")]
    for exchange in EXCHANGES:
        for devices in _MEASURED[exchange]:
            found = _in_own_process(exchange, devices, args.frames)
            network = found.pop("network")
            expected = formula(exchange, devices, args.frames, **network)
            if found != expected:
                raise InputError(
                    f"The compiled step of {devices} devices with {exchange} has {found}, the formula {expected}. "
                    "The step, XLA or the formula in benchmarks/scaling.py has changed."
                )
            for name, number in found.items():
                lines.append(_row(exchange, devices, name, f"{number:,}", f"{expected[name]:,}"))
                print(lines[-1], flush=True)
    report = "\n".join([*lines, "", *_extrapolated(args.frames, network)])
    print(report.split("\n\n", 1)[1])
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_whole(args.out / "scaling.md", report + "\n")
        _plot(args.frames, network, args.out / "scaling.png")


def _in_own_process(exchange: str, devices: int, frames: int) -> dict[str, Any]:
    """Run `measure` in a new process, because JAX fixes the number of CPU devices when it starts."""
    return in_own_process("benchmarks.scaling", "--measure", exchange, devices, f"--frames={frames}")


def _resnet50() -> dict[str, Any]:
    return {"arch": "resnet50", "width_factor": 1.0, "size": 224}


def measure(exchange: str, devices: int, frames: int, *, arch: str, width_factor: float, size: int) -> dict[str, Any]:
    """Count bytes and operations of the compiled step, and under `network` the numbers that the formulas need.

    Args:
      exchange: how devices exchange embeddings.
      devices: of this process, to compile for.
      frames: of each device.
      arch, width_factor, size: of the encoder and its pictures.
    """
    import jax
    import jax.numpy as jnp

    from awcl_jax.augment.options import Augmentation
    from awcl_jax.config import build
    from awcl_jax.config.pretraining import default_config
    from awcl_jax.losses.awcl import LossOptions
    from awcl_jax.models.convolution import left_to_xla
    from awcl_jax.pretrain.step import make_step
    from awcl_jax.runtime import sharding
    from awcl_jax.train.state import TrainState, parameter_count
    from benchmarks.compiled import collective_bytes, matrix_operations

    config = default_config()
    config.model.arch, config.model.width_factor, config.augment.size = arch, width_factor, size
    model = build.make_model(config)
    learning_rate, optimiser = build.make_optimiser(config)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    body = make_step(
        model,
        optimiser,
        learning_rate=learning_rate,
        augmentation=Augmentation(size=size),
        loss=LossOptions(temperature=config.loss.temperature, exchange=exchange),
        seed=0,
    )
    variables = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 32, 32, 1)), train=False), jax.random.key(0))
    state = jax.eval_shape(lambda variables: TrainState.create(variables, optimiser), variables)
    batch = {
        "image": jax.ShapeDtypeStruct((devices * frames, size, size), jnp.uint8),
        **{name: jax.ShapeDtypeStruct((devices * frames,), jnp.int32) for name in ("label", "row")},
    }
    step: Any = sharding.map_step(body, mesh)
    # Only read, not run: LLVM's optimisation does not matter.
    with left_to_xla():
        lowered = step.lower(state, batch)
    hlo = lowered.compile({"xla_backend_optimization_level": 0}).as_text()
    statistics = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(variables["batch_stats"])
    }
    hidden = variables["params"]["projection"]["hidden"]["kernel"].shape
    return {
        **collective_bytes(hlo, devices),
        "operations": matrix_operations(hlo, leave_out="two_views"),
        "network": {
            "parameters": parameter_count(variables["params"]),
            "channels": sum(statistics.values()) // 2,
            "norms": len(statistics) // 2,
            "shortcuts": sum(size for name, size in statistics.items() if "downsample" in name) // 2,
            "encoder": encoder_operations(arch, width_factor, size),
            "projection": 6 * (hidden[0] * hidden[1] + hidden[1] * config.model.embedding),
            "embedding": config.model.embedding,
        },
    }


def encoder_operations(arch: str, width_factor: float, size: int, *, gradient: bool = True) -> int:
    """Count the operations of an encoder's products for one picture, forward and, with `gradient`, backward."""
    from awcl_jax.models import convnext
    from awcl_jax.models.convolution import _SMALL_MAP
    from awcl_jax.models.vit import HEAD, SIZES, ViTOptions

    if arch in convnext.STAGES:
        stem, rest = _convnext_products(arch, width_factor, size)
        # The first layer needs no gradient of the picture.
        return 2 * 2 * stem + 3 * 2 * rest if gradient else 2 * (stem + rest)
    if arch in SIZES:
        depth, heads = SIZES[arch]
        width, patch = HEAD * max(1, round(heads * width_factor)), ViTOptions().patch
        patches = (size // patch) ** 2
        tokens = patches + 1
        # Of each block 12 width^2 weights, and two products of tokens; the patches need no gradient of the picture.
        blocks = depth * (12 * tokens * width**2 + 2 * tokens**2 * width)
        passes, of_patches = (3, 2) if gradient else (1, 1)
        return passes * 2 * blocks + of_patches * 2 * patches * patch**2 * width
    total = 0
    for first, (edge, kernel, stride, padding, c_in, c_out) in enumerate(_convolutions(arch, width_factor, size)):
        out = (edge + 2 * padding - kernel) // stride + 1
        pairs = sum(0 <= o * stride + k - padding < edge for o in range(out) for k in range(kernel))
        if out * out <= _SMALL_MAP:  # a matrix product over patches, padding and all
            pairs = out * kernel
        passes = (3 if first else 2) if gradient else 1
        total += passes * 2 * pairs**2 * c_in * c_out
    return total


def _convnext_products(arch: str, width_factor: float, size: int) -> tuple[int, int]:
    """Count the multiplications of a ConvNeXt's first layer for one picture, and of the rest."""
    from awcl_jax.models.convnext import STAGES, STEM, WIDTH

    edge, width, rest = size // STEM, round(WIDTH * width_factor), 0
    stem = edge**2 * STEM**2 * width
    for stage, blocks in enumerate(STAGES[arch]):
        features = width * 2**stage
        if stage:
            edge //= 2
            rest += edge**2 * 4 * (features // 2) * features
        # Taps within the picture, along one axis, of the 7 x 7 kernel; and two layers, four times as wide between them.
        taps = sum(0 <= o + k - 3 < edge for o in range(edge) for k in range(7))
        rest += blocks * (taps**2 * features + 8 * edge**2 * features**2)
    return stem, rest


def _convolutions(arch: str, width_factor: float, size: int) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Yield (edge of the map, kernel, stride, padding, features in, features out) of every convolution."""
    from awcl_jax.models.resnet import STAGES

    width = round(64 * width_factor)
    yield size, 7, 2, 3, 1, width
    edge, c_in = -(-size // 4), width
    for stage, blocks in enumerate(STAGES[arch]):
        for block in range(blocks):
            stride, features = 2 if stage and not block else 1, width * 2**stage
            after = -(-edge // stride)
            if arch == "resnet50":
                c_out = 4 * features
                yield edge, 1, 1, 0, c_in, features
                yield edge, 3, stride, 1, features, features
                yield after, 1, 1, 0, features, c_out
            else:
                c_out = features
                yield edge, 3, stride, 1, c_in, features
                yield after, 3, 1, 1, features, features
            if stride != 1 or c_in != c_out:
                yield edge, 1, stride, 0, c_in, c_out
            edge, c_in = after, c_out


def formula(exchange: str, devices: int, frames: int, **network: int) -> dict[str, int]:
    """Return the expected result of `measure`, by the docstring above."""
    n, a, d = devices, 2 * frames, network["embedding"]
    products = {"ring": 4, "gather": 3 if n > 1 else 2}[exchange]
    monitored = min(n * frames, _MONITORED)
    summed = network["parameters"] + 3 * network["channels"] - network["shortcuts"] + 2 * d * monitored + 1
    expected = {
        "all-reduce": 4 * summed,
        "operations": a * (network["encoder"] + network["projection"])
        + products * 2 * a * n * a * d
        + 4 * monitored**2 * d,
    }
    if n == 1:
        return expected
    if exchange == "gather":
        return expected | {"all-gather": n * a * (4 * d + 8), "reduce-scatter": n * a * 4 * d}
    return expected | {"collective-permute": n * a * (4 * d + 8) + n * a * (8 * d + 8)}


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of a step's parts, one after the other, and the bytes that the exchange holds on each chip."""

    encoder: float
    loss: float  # products, and in a ring the hops that they do not overlap
    exchange: float
    gradients: float
    statistics: float
    memory: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.encoder + self.loss + self.exchange + self.gradients + self.statistics


def extrapolate(chip: Chip, exchange: str, chips: int, frames: int, network: dict[str, int]) -> Step:
    """Estimate the step on `chips` chips, by the formulas of this module and of `hardware`.

    What the exchange holds is, for R rows on a chip (all of them gathered, or its own and the visiting ones), the rows
    and their gradient, the sums by group and by embedding, and a similarity with each anchor: R (4 x 4d + 8 + 4a).
    """
    n, a, d = chips, 2 * frames, network["embedding"]
    pair = 2 * a * a * d / chip.precise / hardware.UTILISATION  # a product of two chips' rows
    rows = a * (4 * d + 8)
    if exchange == "gather":
        loss, held = 3 * n * pair, n * a
        moved = hardware.all_gather_seconds(chip, n, n * rows) + hardware.all_gather_seconds(chip, n, n * a * 4 * d)
    else:
        hop = hardware.ring_hop_seconds(chip, n, rows)
        loss, held = 4 * n * pair, min(n, 2) * a
        waited = max(hop - pair, 0) + max(hop - 3 * pair, 0)
        moved = n * (waited + hardware.ring_hop_seconds(chip, n, a * 4 * d))
    monitored = 4 * 2 * d * min(n * frames, _MONITORED)
    one_norm = 4 * 2 * network["channels"] / network["norms"]
    return Step(
        encoder=a * (network["encoder"] + network["projection"]) / chip.peak / hardware.UTILISATION,
        loss=loss,
        exchange=moved if n > 1 else 0.0,
        gradients=hardware.all_reduce_seconds(chip, n, 4 * network["parameters"]) if n > 1 else 0.0,
        statistics=(
            2 * network["norms"] * hardware.all_reduce_seconds(chip, n, one_norm)
            + hardware.all_reduce_seconds(chip, n, monitored)
            if n > 1
            else 0.0
        ),
        memory=held * (16 * d + 8 + 4 * a),
    )


def _extrapolated(frames: int, network: dict[str, int]) -> Iterator[str]:
    yield f"Worked out, not measured: ResNet-50 at 224 pixels, {frames} frames a chip. {_assumptions()}"
    yield ""
    parts = ("encoder", "loss", "exchange", "gradients", "statistics", "step")
    yield _row("chip", "chips", "exchange", *(f"{part}, ms" for part in parts), "share of linear", "exchange holds, MB")
    for chip in CHIPS:
        for exchange in EXCHANGES:
            alone = extrapolate(chip, "gather", 1, frames, network).seconds
            for n in COUNTS[1:]:
                step = extrapolate(chip, exchange, n, frames, network)
                times = (step.encoder, step.loss, step.exchange, step.gradients, step.statistics, step.seconds)
                share, held = alone / step.seconds, step.memory / 1e6
                yield _row(chip.name, n, exchange, *(f"{1e3 * t:.2f}" for t in times), f"{share:.0%}", f"{held:,.1f}")
    yield ""
    yield from map(_verdict, CHIPS, [frames] * len(CHIPS), [network] * len(CHIPS))


def _verdict(chip: Chip, frames: int, network: dict[str, int]) -> str:
    """Describe where the ring becomes faster than gathering on this chip."""

    def seconds(exchange: str, n: int) -> float:
        return extrapolate(chip, exchange, n, frames, network).seconds

    counts = [2**k for k in range(1, 13)]
    faster = [n for n in counts if seconds("ring", n) < seconds("gather", n)]
    winner = f"the ring is the faster at {', '.join(map(str, faster))} chips" if faster else "gathering is the faster"
    a_row = extrapolate(chip, "gather", 1, frames, network).memory / (2 * frames)
    limit = int(_MEMORY_SHARE * chip.memory / a_row)
    return (
        f"- {chip.name}: {winner} (of 2 to 4,096); gathering holds a tenth of the memory at {limit:,} rows, which are "
        f"{limit // (2 * frames):,} chips of {frames} frames."
    )


def _assumptions() -> str:
    return (
        f"Assumed: bfloat16 encoder and float32 loss at {hardware.UTILISATION:.0%} of their peaks, "
        f"{hardware.BANDWIDTH_SHARE:.0%} of the published bandwidths, {hardware.HOP * 1e6:.0f} us a hop between linked "
        f"chips, {hardware.NETWORK_HOP * 1e6:.0f} us through a network; only a ring's hops overlap with work."
    )


def _row(*cells: object) -> str:
    line = f"| {' | '.join(map(str, cells))} |"
    return f"{line}\n|{'---|' * len(cells)}" if cells[0] in ("exchange", "chip") else line


def _plot(frames: int, network: dict[str, int], out: Path) -> None:
    figure = Figure(figsize=(11, 5), layout="constrained")
    times, memory = figure.subplots(1, 2)
    counts = [2**k for k in range(13)]
    for colour, chip in enumerate(CHIPS):
        for exchange, style in zip(EXCHANGES, ("-", "--"), strict=True):
            seconds = [1e3 * extrapolate(chip, exchange, n, frames, network).seconds for n in counts]
            # Each line is thinner than the last, because some coincide, as for the H100 and the H200.
            width, label = 3.2 - 0.5 * colour, f"{chip.name}, {exchange}"
            times.loglog(counts, seconds, style, color=f"C{colour}", linewidth=width, label=label)
        memory.axhline(_MEMORY_SHARE * chip.memory / 1e6, color=f"C{colour}", linewidth=0.8, linestyle=":")
        # Side by side, because some memories are nearly equal.
        place = (6 ** (colour % 3), _MEMORY_SHARE * chip.memory / 1e6)
        memory.annotate(f"a tenth of {chip.name}", place, va="bottom", fontsize=7)
    for exchange, style in zip(EXCHANGES, ("-", "--"), strict=True):
        held = [extrapolate(CHIPS[0], exchange, n, frames, network).memory / 1e6 for n in counts]
        memory.loglog(counts, held, style, color="black", label=exchange)
    times.set(title="time of a step, ms", xlabel="chips")
    memory.set(title="what the exchange holds on a chip, MB", xlabel="chips")
    for ax in (times, memory):
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    title = f"ResNet-50, 224 pixels, {frames} frames a chip: worked out, not measured"
    figure.suptitle(f"{title}\n{textwrap.fill(_assumptions(), 130)}", fontsize=8)
    figures.save(figure, out, dpi=120)


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
