"""Count what a compiled program moves between devices and multiplies, from its HLO text.

XLA prints every collective once, with the shapes that one device sees: an all-reduce of 100 bytes counts 100, though a
ring of n devices sends 2 (n - 1) / n times as many over each device's wire. A loop's body is also printed once (and
`cost_analysis` counts it once): here it counts as often as the loop runs.
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute")

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """A line of HLO: what it computes, from what, and how often it runs in a step."""

    shape: str
    operation: str
    rest: str
    runs: int
    operands: tuple[str, ...]  # their shapes


def collective_bytes(hlo: str, devices: int) -> dict[str, int]:
    """Count the bytes of each kind of collective in a step, by the larger of its two sides on one device.

    That is the gathered result of an all-gather and the operand of a reduce-scatter; the others have equal sides.
    """
    total: dict[str, int] = defaultdict(int)
    for instruction in instructions(hlo):
        kind = instruction.operation
        assert not kind.startswith(tuple(f"{name}-start" for name in COLLECTIVES)), (
            "the program must be compiled for a CPU"
        )
        if kind in COLLECTIVES:
            parts = devices if kind == "reduce-scatter" else 1
            total[kind] += instruction.runs * parts * _bytes(instruction.shape)
    return dict(total)


def matrix_operations(hlo: str, leave_out: str) -> int:
    """Count multiplications and additions of all convolutions and matrix products in a step on one device.

    A convolution is counted as XLA's cost analysis does, without the products with padding.

    Args:
      hlo: the compiled program's text.
      leave_out: operations with this name in the source are not counted.
    """
    counts = {"convolution": _of_convolution, "dot": _of_dot}
    return sum(
        instruction.runs * counts[instruction.operation](instruction)
        for instruction in instructions(hlo)
        if instruction.operation in counts and leave_out not in instruction.rest
    )


def instructions(hlo: str) -> Iterator[Instruction]:
    """Yield all instructions of a program that run."""
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    entry = current = ""
    for line in hlo.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            current = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = current if line.startswith("ENTRY") else entry
            computations[current] = []
        elif found := _INSTRUCTION.match(line):
            computations[current].append(found.groups())  # type: ignore[arg-type]  # the pattern has four groups

    def walk(name: str, runs: int) -> Iterator[Instruction]:
        shapes = {name: shape for name, shape, _, _ in computations[name]}
        for _, shape, operation, rest in computations[name]:
            named = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            yield Instruction(shape, operation, rest, runs, tuple(shapes.get(operand, "") for operand in named))
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            for role, called in re.findall(r"(calls|to_apply|body)=%([\w.-]+)", rest):
                if operation not in COLLECTIVES:
                    yield from walk(called, runs * (int(trips[1]) if role == "body" and trips else 1))

    yield from walk(entry, 1)


def _bytes(shape: str) -> int:
    return sum(_BYTES[kind] * math.prod(_edges(edges)) for kind, edges in _ARRAY.findall(shape))


def _edges(text: str) -> list[int]:
    return [int(edge) for edge in text.split(",") if edge]


def _shape(text: str) -> list[int]:
    return _edges(_ARRAY.findall(text)[0][1])


def _of_dot(dot: Instruction) -> int:
    left = _shape(dot.operands[0])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    assert contracted is not None
    return 2 * math.prod(_shape(dot.shape)) * math.prod(left[axis] for axis in _edges(contracted[1]))


def _of_convolution(convolution: Instruction) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.rest)
    window = re.search(r"window=\{([^}]*)\}", convolution.rest)
    assert labels is not None
    assert window is not None
    given = dict(part.split("=") for part in window[1].split())
    left, kernel, out = (
        dict(zip(axes, _shape(shape), strict=True))
        for axes, shape in zip(labels.groups(), (*convolution.operands[:2], convolution.shape), strict=True)
    )
    pairs = 1
    for axis, size in enumerate(map(int, given["size"].split("x"))):
        number = {name: _along(given, name, axis) for name in ("stride", "lhs_dilate", "rhs_dilate")}
        before = int(given["pad"].split("x")[axis].split("_")[0]) if "pad" in given else 0
        edge = left[str(axis)]
        pairs *= sum(
            0 <= place < (edge - 1) * number["lhs_dilate"] + 1 and place % number["lhs_dilate"] == 0
            for o, k in itertools.product(range(out[str(axis)]), range(size))
            for place in [o * number["stride"] + k * number["rhs_dilate"] - before]
        )
    return 2 * out["b"] * out["f"] * kernel["i"] * pairs


def _along(window: dict[str, str], name: str, axis: int) -> int:
    return int(window[name].split("x")[axis]) if name in window else 1
