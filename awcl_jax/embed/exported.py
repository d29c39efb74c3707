"""Reads an encoder that `awcl_jax.export` wrote.

An export may be a stranger's. Its numbers are limited before anything is allocated by them, and the function in
`encoder.jax` is looked through before it runs: a custom call of StableHLO would run native code of this process.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
from jax import export
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import sdy, stablehlo
from jaxtyping import Array, Float, PyTree, UInt8

from awcl_jax.augment.views import centre_view
from awcl_jax.config.export_files import FUNCTION, WEIGHTS
from awcl_jax.config.exported import read_description, read_weights
from awcl_jax.evaluate.encode import FrozenEncoder
from awcl_jax.runtime.errors import InputError

_MOST_OPERATIONS = 1_000_000  # with every call written out; a ResNet-50 has a thousand
_CUSTOM_CALLS = frozenset({"shape_assertion"})  # of jax.export, about the batch's size; runs nothing
# JAX's own, defined by a function beside them that is looked through, too: a GELU has one.
_COMPOSITES = frozenset({"chlo.erf", "chlo.erfc"})
# What the exports of this package hold, and further arithmetic without loops, files, devices or the host.
_ARITHMETIC = (
    "abs add and bitcast_convert broadcast_in_dim case ceil clamp compare concatenate constant convert convolution "
    "cosine divide dot_general dynamic_broadcast_in_dim dynamic_conv dynamic_gather dynamic_iota dynamic_pad "
    "dynamic_reshape dynamic_slice exponential exponential_minus_one floor gather get_dimension_size iota is_finite "
    "log log_plus_one logistic maximum minimum multiply negate not optimization_barrier or pad power "
    "real_dynamic_slice reduce reduce_window remainder reshape return reverse round_nearest_afz round_nearest_even "
    "rsqrt select shift_left shift_right_arithmetic shift_right_logical sign sine slice sqrt subtract tanh transpose "
    "xor"
)
_OPERATIONS = frozenset(
    ["builtin.module", "func.func", "func.call", "func.return", "stablehlo.custom_call", "stablehlo.composite"]
    + [f"stablehlo.{name}" for name in _ARITHMETIC.split()]
)


def read_export(folder: Path) -> FrozenEncoder:
    """Read the encoder of an exported folder, from its safetensors or, without these, its `encoder.jax`.

    Raises:
      InputError: the folder has neither, or a file is damaged, a link, or asks for more than an encoder needs.
    """
    described = read_description(folder)
    weights, function = folder / WEIGHTS, folder / FUNCTION
    square, options = described.square, described.options
    if weights.is_file():
        model = described.make_encoder()
        variables = read_weights(folder, described)

        @jax.jit
        def encode(variables: PyTree, frames: UInt8[Array, "b h w"]) -> Float[Array, "b f"]:
            features = model.apply(variables, centre_view(frames, options=options), train=False)
            assert isinstance(features, jax.Array)
            return features

        return FrozenEncoder(encode, variables, square, str(weights), described.region)
    if function.is_file():
        try:
            exported = export.deserialize(bytearray(function.read_bytes()))
            forbidden = _forbidden(exported.mlir_module_serialized)
        except Exception as error:  # flatbuffers and MLIR raise many kinds
            raise InputError(_unreadable(function, described.jax)) from error
        if forbidden:
            raise InputError(f"{function} has {forbidden}, which no export of an encoder has; nothing of it was run.")
        call = jax.jit(lambda _, frames: exported.call(frames))
        return FrozenEncoder(call, {}, square, str(function), described.region)
    raise InputError(
        f"{folder} has neither {weights.name} nor {function.name}. Export as safetensors, or use the run itself."
    )


def _unreadable(function: Path, written_by: str) -> str:
    """Return why a function cannot be read; `written_by` is the version of JAX that the export names, if any."""
    here = jax.__version__
    if not written_by:
        return (
            f"{function} is damaged, or was written by a JAX newer than this one ({here}). Install a newer JAX, or "
            "export again."
        )
    if _numbers(written_by) <= _numbers(here):
        return f"{function} is damaged. Export again."
    return (
        f"{function} was written by JAX {written_by[:20]}, and this is JAX {here}. Install that version or a newer "
        "one, or export again."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version[:20])))


def _forbidden(module: bytes) -> str:
    """Return what a serialised StableHLO module has that no encoder needs; empty if there is nothing.

    Nothing is compiled or run.
    """
    with ir.Context() as context:
        stablehlo.register_dialect(context)
        sdy.register_dialect(context)  # some functions of JAX have it; refused below
        parsed = stablehlo.deserialize_portable_artifact(context, module)
        found: list[str] = []
        calls: dict[str, tuple[int, list[str]]] = {}  # function -> its operations, and the functions that it calls
        for function in parsed.body.operations:
            count, called = 0, []

            def visit(operation: ir.Operation) -> ir.WalkResult:
                nonlocal count
                count += 1
                if operation.name not in _OPERATIONS:
                    found.append(f"the operation {operation.name[:100]}")
                elif operation.name == "stablehlo.custom_call":
                    target = ir.StringAttr(operation.attributes["call_target_name"]).value
                    if target not in _CUSTOM_CALLS:
                        found.append(f"a custom call of {target[:100]!r}")
                elif operation.name == "stablehlo.composite":
                    composite = ir.StringAttr(operation.attributes["name"]).value
                    if composite not in _COMPOSITES:
                        found.append(f"the composite operation {composite[:100]!r}")
                    called.append(ir.FlatSymbolRefAttr(operation.attributes["decomposition"]).value)  # noqa: B023
                elif operation.name == "func.call":
                    called.append(ir.FlatSymbolRefAttr(operation.attributes["callee"]).value)  # noqa: B023
                return ir.WalkResult.ADVANCE

            function.operation.walk(visit)
            name = ir.StringAttr(function.attributes["sym_name"]).value if "sym_name" in function.attributes else ""
            calls[name] = (count, called)
    if found:
        return next((what for what in found if what.startswith("a custom call")), found[0])
    return "" if _written_out(calls) <= _MOST_OPERATIONS else "calls without end"


def _written_out(calls: Mapping[str, tuple[int, list[str]]]) -> float:
    """Return the number of operations of all functions with every call written out; infinite if one calls itself."""
    total: dict[str, float] = {}
    waiting = dict(calls)
    while ready := [name for name, (_, called) in waiting.items() if not set(called) & waiting.keys()]:
        for name in ready:
            count, called = waiting.pop(name)
            total[name] = count + sum(total.get(other, 0) for other in called)
    return math.inf if waiting else sum(total.values())
