"""The state before the first step, made while the step is compiled."""

import chex
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from awcl_jax.config import build
from awcl_jax.downstream import runner as downstream
from awcl_jax.pretrain import runner as pretrain
from awcl_jax.runtime import sharding
from awcl_jax.train import initial_state as first_state
from awcl_jax.train.initial_state import FirstState
from configs import downstream_planes, fine, moco


def small(method=fine):
    config = method.get_config("tiny")
    config.model.width_factor = 0.0625
    return config


def state_of(config, **arguments):
    queue = pretrain.make_queue(config, np.zeros(4, np.int32))
    return FirstState(build.make_model(config), optax.adamw(0.1), seed=0, queue=queue, **arguments)


class Kernel(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x * self.param("kernel", jax.random.bits, (7,)).sum()


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_variables_are_drawn_by_the_key_of_the_seed(seed):
    expected = Kernel().init(jax.random.key(seed), np.zeros((1, 1, 1, 1)), train=False)
    chex.assert_trees_all_equal(first_state.initial_variables(Kernel(), seed=seed), dict(expected))


def test_shapes_are_those_of_what_is_drawn():
    model = build.make_model(small())
    drawn, shapes = first_state.initial_variables(model, seed=0), first_state.shapes_of(model)
    found, wanted = (jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree) for tree in (shapes, drawn))
    assert found == wanted


@pytest.mark.parametrize("method", [fine, moco])
def test_the_shapes_of_a_state_are_known_before_it(method):
    state = state_of(small(method))
    chex.assert_trees_all_equal_shapes_and_dtypes(state.shapes, state.wait())


@pytest.mark.parametrize("method", [fine, moco])
def test_a_placed_state_is_the_same_and_its_variables_outlive_the_step(method):
    mesh = sharding.make_mesh(jax.devices()[:2])
    wanted, first = state_of(small(method)).wait(), state_of(small(method))
    chex.assert_trees_all_equal(first.variables, wanted.variables)
    placed = first.place(mesh)
    chex.assert_trees_all_equal(jax.device_get(placed), wanted)
    change_all(placed, mesh)
    chex.assert_trees_all_equal(first.variables, wanted.variables)


def test_the_first_step_reuses_the_memory_of_a_placed_state():
    mesh = sharding.make_mesh(jax.devices()[:1])
    state = state_of(small()).place(mesh)
    before = places(state)
    assert places(change_all(state, mesh)) == before


def change_all(state, mesh):
    """The state after a step that adds one to all its numbers."""
    step = sharding.map_step(lambda state, batch: (jax.tree.map(lambda x: x + 1, state), state.step), mesh)
    changed, _ = step(state, sharding.place_batch(np.zeros(2), mesh))
    return jax.block_until_ready(changed)


def places(tree):
    return [array.unsafe_buffer_pointer() for array in jax.tree.leaves(tree)]


def test_what_prevents_a_state_is_raised_where_it_is_waited_for(monkeypatch):
    def broken(*_, **__):
        raise KeyError("encoder")

    monkeypatch.setattr(first_state, "_made_state", broken)
    state = state_of(small())
    with pytest.raises(KeyError):
        state.wait()


@pytest.mark.slow
@pytest.mark.parametrize("method", [moco, downstream_planes], ids=lambda method: method.__name__)
def test_the_step_of_a_run_is_compiled_once(phantom, tmp_path, method, compiled):
    config = small(method)
    config.data.path = str(phantom)
    config.report.pictures = False
    config.train.steps = 6
    run = downstream.run if method is downstream_planes else pretrain.run
    run(config, tmp_path / "run")
    assert compiled.count("jit(step)") == 1
