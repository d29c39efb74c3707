"""How a mapped step is compiled; that its numbers are those of one device is in `tests/pretrain/test_topology.py`."""

import platform
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from awcl_jax.runtime import sharding

# A step that needs a matrix of 64 MB, in a process that keeps its pages; between steps small blocks are
# allocated that last, of all sizes that aligning the step's memory leaves over.
STEPS = """
import ctypes
from awcl_jax.runtime import memory
memory.keep_freed_pages()
import jax, jax.numpy as jnp, numpy as np
from awcl_jax.runtime import sharding
from benchmarks.own_process import memory_mb
memory.free_before_the_next()
mesh = sharding.make_mesh()
def step(state, batch):
    square = jnp.tanh(batch[:, None] * state[None])
    return state + sharding.mean(square @ square[:, 0]), state.sum()
state, batch = sharding.replicate(jnp.ones(4096), mesh), sharding.place_batch(np.ones(4096, np.float32), mesh)
compiled = sharding.map_step(step, mesh).lower(state, batch).compile()
placed = sharding.keep_place(compiled)
library = ctypes.CDLL(None)
library.malloc.argtypes = [ctypes.c_size_t]
before = memory_mb("VmRSS")
for _ in range(30):
    state, metric = placed(state, batch)
    jax.block_until_ready(metric)
    for size in range(16, 128, 16):
        for _ in range(8):
            library.malloc(size)
print(sharding.temporary_bytes(compiled) / 2**20, memory_mb("VmHWM") - before)
"""


def test_a_step_on_a_cpu_holds_one_of_many_independent_products_at_a_time():
    mesh = sharding.make_mesh(jax.devices()[:1])

    def step(state, batch):
        for factor in range(1, 17):
            state = state + sharding.mean(jnp.sin(factor * batch[:, None] @ batch[None]).mean())
        return state, state

    batch = sharding.place_batch(jnp.ones(512), mesh)
    compiled = sharding.map_step(step, mesh).lower(jnp.zeros(()), batch).compile()
    product = 512 * 512 * 4  # bytes
    # In the default order JAX 0.10 takes 16 of them.
    assert product <= sharding.temporary_bytes(compiled) < 2 * product


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="keeps pages with glibc only")
def test_steps_take_the_memory_of_one():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    own, taken = map(float, done.stdout.split())
    assert own >= 64
    assert taken < 1.5 * own
