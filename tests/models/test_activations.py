"""What is between the layers of vision transformers: value and gradient, on one device and spread over several."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models.activations import ACTIVATIONS
from awcl_jax.runtime import sharding

pytestmark = pytest.mark.quick


def by_hand(name, x):
    """Value of the function, in float64."""
    if name == "gelu":
        return x * 0.5 * math.erfc(-x / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + math.exp(-1.702 * x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_gradient_by_hand_on_any_devices(name):
    points = np.concatenate([np.linspace(-6, 6, 37), [0, -1e-3, 1e-3]])
    value = np.array([by_hand(name, x) for x in points])
    step = 1e-5
    slope = np.array([(by_hand(name, x + step) - by_hand(name, x - step)) / (2 * step) for x in points])

    def both(x):
        return jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(x)

    spec = jax.sharding.PartitionSpec(sharding.AXIS)
    spread = jax.shard_map(both, mesh=sharding.make_mesh(), in_specs=spec, out_specs=spec)
    for of_devices in (both, spread):
        found, gradient = jax.jit(of_devices)(jnp.asarray(points, jnp.float32))
        np.testing.assert_allclose(found, value, rtol=2e-6, atol=1e-6)
        np.testing.assert_allclose(gradient, slope, rtol=2e-5, atol=5e-6)  # tanh cancels far below 0


def test_gelu_in_bfloat16_is_right_to_its_rounding():
    points = np.asarray([-3.0, -2.5, -1.0, 0.5, 2.0])
    found = ACTIVATIONS["gelu"](jnp.asarray(points, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    expected = [by_hand("gelu", x) for x in points]
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8)
