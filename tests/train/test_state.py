"""The state that a run carries from step to step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from awcl_jax.train.momentum import Queue
from awcl_jax.train.state import TrainState, parameter_count

VARIABLES = {
    "params": {"encoder": {"kernel": jnp.ones((2, 3))}, "projection": {"bias": jnp.arange(4.0)}},
    "batch_stats": {"encoder": {"mean": jnp.zeros(3)}},
}


def test_a_new_state_holds_the_models_variables_at_step_zero():
    state = TrainState.create(VARIABLES, optax.sgd(0.1))
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.variables, VARIABLES)


def test_a_model_without_running_statistics_has_none():
    assert TrainState.create({"params": VARIABLES["params"]}, optax.sgd(0.1)).batch_stats == {}


def test_an_update_changes_parameters_optimiser_and_statistics():
    optimiser = optax.sgd(0.1, momentum=0.5)
    state = TrainState.create(VARIABLES, optimiser)
    grads = jax.tree.map(lambda p: jnp.full_like(p, 2.0), VARIABLES["params"])
    for mean in (1.0, 7.0):
        state = state.update(grads=grads, batch_stats={"encoder": {"mean": jnp.full(3, mean)}}, optimiser=optimiser)
    assert int(state.step) == 2
    # Momentum: 2, then 0.5 * 2 + 2 = 3; together 0.1 * (2 + 3) = 0.5 downwards.
    np.testing.assert_allclose(state.params["encoder"]["kernel"], np.full((2, 3), 0.5), rtol=1e-6)
    np.testing.assert_allclose(state.params["projection"]["bias"], np.arange(4) - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(state.batch_stats["encoder"]["mean"], [7.0, 7.0, 7.0])


def test_an_update_leaves_the_old_state_as_it_was():
    optimiser = optax.adam(0.1)
    state = TrainState.create(VARIABLES, optimiser)
    state.update(grads=VARIABLES["params"], batch_stats=VARIABLES["batch_stats"], optimiser=optimiser)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.variables, VARIABLES)


def test_a_skipped_update_changes_only_the_step_count():
    optimiser = optax.adam(0.1)
    queue = Queue.empty(4, 2)
    state = TrainState.create(VARIABLES, optimiser, queue=queue)
    nans = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), VARIABLES)
    one = jnp.ones(1, jnp.int32)
    moved = state.momentum.replace(params=nans["params"], queue=queue.push(jnp.ones((1, 2)), one, one))

    @jax.jit
    def update(where):
        changed = {"grads": nans["params"], "batch_stats": nans["batch_stats"], "momentum": moved}
        return state.update(**changed, optimiser=optimiser, where=where)

    left_out = update(False)
    assert int(left_out.step) == 1
    jax.tree.map(np.testing.assert_array_equal, left_out.replace(step=state.step), state)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(update(True).variables))


def test_a_state_passes_through_jit():
    state = TrainState.create(VARIABLES, optax.adam(0.1))
    same = jax.jit(lambda s: s)(state)
    assert isinstance(same, TrainState)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_parameters_are_counted():
    assert parameter_count(VARIABLES["params"]) == 2 * 3 + 4
