#!/usr/bin/env bash
# JAX 0.10.2, CPU: an executable that JAX has read from its persistent compilation cache can be serialised with
# jax.experimental.serialize_executable and loaded again without an error, but its machine code is left out: it fails
# when it runs.
#
# Expected: the loaded executable gives the same numbers, or serialisation raises an error.
# Seen: "INTERNAL: Error dispatching computation: Function ... not found (type id: 1)" at the first call.
#
# Exit status: 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/serialize.py" <<'PYTHON'
import os
import sys

import jax
import jax.numpy as jnp
from jax.experimental import serialize_executable

jax.config.update("jax_compilation_cache_dir", os.path.join(sys.argv[1], "cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
x = jnp.arange(4096.0).reshape(64, 64)
compiled = jax.jit(lambda x: jnp.tanh(x).sum(axis=0) + jnp.sort(x[0])).lower(x).compile()
loaded = serialize_executable.deserialize_and_load(*serialize_executable.serialize(compiled))
try:
    print("same numbers:", bool((loaded(x) == compiled(x)).all()))
except jax.errors.JaxRuntimeError as error:
    print("fails:", str(error).splitlines()[0])
PYTHON
first=$("$folder/venv/bin/python" "$folder/serialize.py" "$folder" 2>/dev/null | tail -1)
second=$("$folder/venv/bin/python" "$folder/serialize.py" "$folder" 2>/dev/null | tail -1)
echo "compiled:             $first"
echo "read from the cache:  $second"
[[ $first == "same numbers: True" && $second == fails:*"not found"* ]]
