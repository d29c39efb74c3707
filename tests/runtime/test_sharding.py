"""How a mapped step is compiled; that its numbers are those of one device is in `tests/pretrain/test_topology.py`."""

import jax
import jax.numpy as jnp

from awcl_jax.runtime import sharding


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
