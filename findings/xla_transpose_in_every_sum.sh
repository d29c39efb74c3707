#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: sixteen sums over parts of an array whose last two axes are exchanged take many times as long as the
# same sums over the array as it lies, and several times as long as exchanging the axes of all sixteen sums afterwards.
# The compiler puts the exchange into each sum, and each reads its parts of 1 MB across their rows.
#
# Expected: to exchange the axes of nine parts first costs less than to exchange those of sixteen sums.
# Seen (milliseconds of the processor, the least of nine calls): "as it lies 4.3", "exchanged last 11.7",
# "exchanged first 78.5"; all three have the same numbers.
#
# Exit status: 0 while the last takes at least three times as long as the second, 1 once this has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/sums.py" <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTS = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def sums(parts):
    """All sixteen sums of the nine parts [3, 3, 512, 512]."""
    return [
        sum(float(a * b) * parts[i, j] for i, a in enumerate(one) for j, b in enumerate(other) if a * b)
        for one in WEIGHTS
        for other in WEIGHTS
    ]


WAYS = {
    "as it lies": lambda parts: sums(parts),
    "exchanged last": lambda parts: [found.T for found in sums(parts)],
    "exchanged first": lambda parts: sums(parts.swapaxes(2, 3)),
}
given = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 512, 512)), jnp.float32)
spent, made = {}, {}
for name, way in WAYS.items():
    call = jax.jit(way)
    made[name] = jax.block_until_ready(call(given))
    turns = []
    for _ in range(9):
        start = time.process_time()
        jax.block_until_ready(call(given))
        turns.append(time.process_time() - start)
    spent[name] = min(turns)
    print(f"{name}: {spent[name] * 1e3:.1f} ms")
for one, other in zip(made["exchanged last"], made["exchanged first"]):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
raise SystemExit(spent["exchanged first"] < 3 * spent["exchanged last"])
PYTHON
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.2.6
JAX_PLATFORMS=cpu "$folder/environment/bin/python" "$folder/sums.py"
