#!/usr/bin/env bash
# jaxlib 0.10.2, CPU: with JAX_DISABLE_MOST_OPTIMIZATIONS=1 and --xla_cpu_use_fusion_emitters=false, which compile sooner,
# a bilinear resampling has weights that sum to 2. One coordinate is computed more than once within a fusion, its copies
# are rounded differently, and where that is about a whole number, 1 - (y - floor y) and (y - floor y) see two floors.
# Each of the two settings alone gives the right picture.
#
# Expected: a picture of ones stays a picture of ones, whatever the compiler leaves out, to the rounding.
# Seen: "both: 1.0 to 2.0"; alone and with neither "1.0 to 1.0".
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/resample.py" <<'PYTHON'
import jax
import jax.numpy as jnp

EDGE = 80


def turned(picture, scale, angle):
    """The picture, turned about its middle by an angle: here by 0."""
    along = (jnp.arange(EDGE) + 0.5) / EDGE - 0.5
    down, right = along[:, None] * scale * EDGE, along[None, :] * scale * EDGE
    y = 0.5 * EDGE + jnp.cos(angle) * down - jnp.sin(angle) * right
    x = 0.5 * EDGE + jnp.sin(angle) * down + jnp.cos(angle) * right
    y, x = (jnp.clip(at - 0.5, 0.0, EDGE - 1.0) for at in (y, x))
    top, left = y.astype(jnp.int32), x.astype(jnp.int32)
    bottom, right_of = jnp.minimum(top + 1, EDGE - 1), jnp.minimum(left + 1, EDGE - 1)
    below, beside = y - top, x - left

    def at(row, column):
        return picture.ravel().at[row * EDGE + column].get(mode="promise_in_bounds")

    upper = (1 - beside) * at(top, left) + beside * at(top, right_of)
    lower = (1 - beside) * at(bottom, left) + beside * at(bottom, right_of)
    return (1 - below) * upper + below * lower


made = jax.jit(jax.vmap(turned))(jnp.ones((1, EDGE, EDGE)), jnp.ones(1), jnp.zeros(1))
print(f"{made.min():.1f} to {made.max():.1f}")
PYTHON
python3 -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
resample() {
  printf '%s: ' "$1" | tee -a "$folder/seen.txt"
  JAX_PLATFORMS=cpu XLA_FLAGS=$2 JAX_DISABLE_MOST_OPTIMIZATIONS=$3 "$folder/environment/bin/python" "$folder/resample.py" |
    tee -a "$folder/seen.txt"
}
resample neither "" 0
resample "few optimisations" "" 1
resample "without fusion emitters" --xla_cpu_use_fusion_emitters=false 0
resample both --xla_cpu_use_fusion_emitters=false 1
[[ $(grep -c ': 1.0 to 1.0$' "$folder/seen.txt") == 3 ]]
grep -qx 'both: 1.0 to 2.0' "$folder/seen.txt"
