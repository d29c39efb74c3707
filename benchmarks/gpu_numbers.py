"""Whether a GPU's numbers are those of a CPU, and repeat: two parts of `benchmarks.on_gpu`."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from awcl_jax.runtime.errors import InputError
from benchmarks import loss, step
from benchmarks.gpu_sizes import FULL, Add, Note, Sizes
from benchmarks.own_process import in_own_process


def numbers(add: Add, note: Note, sizes: Sizes) -> None:
    """Compare the loss, its gradient and a training step with those of the CPU of this machine.

    Raises:
      InputError: a number differs by more than its tolerance.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "cpu.npz"
        command = [sys.executable, "-m", "benchmarks.on_gpu", f"--cpu_numbers={file}"]
        rehearsed = [] if sizes is FULL else ["--rehearse"]
        with subprocess.Popen([*command, *rehearsed], env=os.environ | {"JAX_PLATFORMS": "cpu"}) as other:
            if sizes is not FULL:
                other.wait()  # both would compile the same at the same time
            here = some_numbers(sizes, tuple(_STEPS))
        if other.returncode:
            raise InputError(f"The process on the CPU ended with status {other.returncode}; its error is above.")
        with np.load(file) as stored:
            there = dict(stored)
    compare(add, here, there)


def compare(add: Add, here: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]) -> None:
    """Add a line for each of `TOLERANCES`; steps of every type are compared with one in float32.

    Raises:
      InputError: a number differs by more than its tolerance.
    """
    wrong = []
    for name, tolerance in TOLERANCES.items():
        reference = there[re.sub("^step in .*:", "step in float32:", name)]
        error = float(np.linalg.norm(here[name] - reference) / np.linalg.norm(reference))
        add(name, f"relative error to the CPU's float32, at most {tolerance:g}", [error])
        if not error <= tolerance:
            wrong.append(f"{name} ({error:.2g}, at most {tolerance:g})")
    if wrong:
        raise InputError(f"Not the CPU's numbers: {', '.join(wrong)}.")


_STEPS = {
    "step in float32 products": ("float32", "highest"),
    "step in float32": ("float32", None),
    "step in bfloat16": ("bfloat16", None),
}

TOLERANCES = {
    "loss, rows against themselves": 1e-5,
    "loss, rows against themselves: gradient": 1e-4,
    "loss, rows against others": 1e-5,
    "loss, rows against others: gradient": 1e-4,
    "step in float32 products: loss": 1e-4,
    "step in float32 products: change of the parameters": 1e-2,
    "step in float32: loss": 1e-2,
    "step in float32: change of the parameters": 0.2,
    "step in bfloat16: loss": 5e-2,
    "step in bfloat16: change of the parameters": 0.8,
}
"""Number -> largest norm of the difference to the CPU's, as a share of the norm of that.

The loss is float32 arithmetic everywhere. A GPU's default for float32 is TF32, with the 10 bits of a float16; bfloat16
has 7, and is compared with float32. A step's change of the parameters is its gradient (SGD), to which all layers add
their rounding: in bfloat16 a CPU's has an error of 0.37 here, and of 0.52 at the size of a rehearsal.
"""


def cpu_numbers(sizes: Sizes, file: Path) -> None:
    """Write what others are compared with."""
    np.savez(file, **some_numbers(sizes, ("step in float32",)))  # type: ignore[arg-type]


def some_numbers(sizes: Sizes, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Compute what `TOLERANCES` names with steps of these kinds, on JAX's default device; in float64 to compare."""
    import jax
    import jax.numpy as jnp

    found: dict[str, Any] = {}
    z, groups = loss.rows_in_groups(sizes.rows[0] if sizes is not FULL else 2048)
    for name, method in (("themselves", "symmetric"), ("others", "blocks")):
        compute, _ = loss.jax_loss(method, z, groups)
        value, gradient = compute()
        found |= {f"loss, rows against {name}": value, f"loss, rows against {name}: gradient": gradient}
    width, pixels, batch = (0.25, 64, 32) if sizes is FULL else (sizes.width, sizes.pixels, sizes.batch)
    for name in kinds:
        dtype, precision = _STEPS[name]
        with jax.default_matmul_precision(precision):
            one, state, placed = step.our_program("resnet18", width, pixels, batch, dtype, changes=_PLAIN_STEP)
            before = jax.tree.map(jnp.copy, state.params)
            after, metrics = one(state, placed)
        change = jax.tree.map(jnp.subtract, after.params, before)
        found[f"{name}: loss"] = metrics["loss"]
        found[f"{name}: change of the parameters"] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(change)])
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


# The first step moves the parameters by their gradient.
_PLAIN_STEP = {"optim.name": "sgd", "optim.warmup_steps": 0, "optim.weight_decay": 0.0}


def twice(add: Add, note: Note, sizes: Sizes) -> None:
    """Take one step twice from one state, also with XLA's deterministic operations, and compare all parameters."""
    found = {}
    rehearsed = [] if sizes is FULL else ["--rehearse"]
    for name, flags in (("", ""), (", deterministic operations", "--xla_gpu_deterministic_ops=true")):
        # XLA takes a value of spaces alone for the name of a file.
        environment = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
        found[name] = in_own_process("benchmarks.on_gpu", "--twice", *rehearsed, environment=environment)
        add(f"same step twice{name}: equal bit for bit", "share of the parameters", [found[name]["equal"]])
        add(f"same step twice{name}: largest difference", "share of the largest change", [found[name]["difference"]])
    plain, exact = (one["seconds"] for one in found.values())
    ratios = [other / own for own, other in zip(plain, exact, strict=True)]
    add("step with deterministic operations", "times the step without", ratios)


def step_twice(sizes: Sizes) -> dict[str, Any]:
    """Return how far two equal steps of a ResNet-18 agree, and the seconds of some."""
    import jax
    import jax.numpy as jnp

    one, state, placed = step.our_program(
        "resnet18", sizes.width, sizes.pixels, sizes.batch, sizes.dtype, changes={"optim.warmup_steps": 0}
    )
    before = jax.device_get(state.params)
    again = jax.tree.map(jnp.copy, state)
    results = []
    for start in (state, again):
        state, _ = one(start, placed)
        results.append(jax.device_get(state.params))
    first, second = results
    pairs = list(zip(*map(jax.tree.leaves, (before, first, second)), strict=True))
    change = max(float(np.abs(a - old).max()) for old, a, _ in pairs)
    times = []
    for _ in range(sizes.turns):
        begun = time.perf_counter()
        state, _ = jax.block_until_ready(one(state, placed))
        times.append(time.perf_counter() - begun)
    return {
        "equal": sum(int((a == b).sum()) for _, a, b in pairs) / sum(a.size for _, a, _ in pairs),
        "difference": max(float(np.abs(a - b).max()) for _, a, b in pairs) / change,
        "seconds": times,
    }
