#!/usr/bin/env bash
# JAX 0.12.0.1, CPU: the gradient of erf, erfc and the exact GELU raises an error within jax.shard_map, whose check of
# varying axes is on by default. Their values are fine there, and so is the gradient outside of it, and with JAX 0.10.2.
#
# Expected: the gradient is that of each device's part, as of tanh.
# Seen: "ValueError: Primitive polynomial requires varying manual axes to match".
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/gradient.py" <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.sharding.Mesh(jax.devices(), ("devices",))
rows = jax.sharding.PartitionSpec("devices")
x = jnp.linspace(-3, 3, 8)


def outcome(function):
    spread = jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)
    try:
        return "ok" if np.allclose(jax.jit(spread)(x), function(x), atol=1e-6) else "other numbers"
    except ValueError as error:
        return str(error).partition(", but")[0]


functions = {
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "exact GELU": lambda x: jax.nn.gelu(x, approximate=False),
}
for name, function in functions.items():
    print(f"{name}: value {outcome(function)}; gradient {outcome(jax.vmap(jax.grad(function)))}")
PYTHON
for version in 0.10.2 0.12.0.1; do
  python=$(command -v python3.13 || command -v python3.12 || echo python3)
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "jax==$version"
  echo "JAX $version"
  "$folder/$version/bin/python" "$folder/gradient.py" 2>/dev/null | tee "$folder/$version.txt"
done
[[ $(grep -c 'value ok; gradient ok' "$folder/0.10.2.txt") == 4 ]]
[[ $(grep -c 'value ok; gradient ok' "$folder/0.12.0.1.txt") == 1 ]]
[[ $(grep -c 'gradient Primitive polynomial requires varying manual axes to match' "$folder/0.12.0.1.txt") == 3 ]]
