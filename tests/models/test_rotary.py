"""Rotary positions against loops in float64."""

import cmath
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models.rotary import angles, periods, turn
from awcl_jax.models.vit import Attention, ViT, ViTOptions
from tests.helpers.slow_rotary import turned

GRID = (3, 2)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_angles_worked_out_by_hand():
    # Heads of 8 features have the periods 1 and 100^(1/2) = 10. Of 2 rows and 1 column, the rows are at -1/2 and 1/2,
    # the column at 0: 2 pi / 2 = pi, and a tenth.
    np.testing.assert_allclose(periods(8), [1, 10])
    found = angles((2, 1), before=1, features=8)
    pi = math.pi
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [-pi, -pi / 10, 0, 0], [pi, pi / 10, 0, 0]], atol=1e-12)


def test_patches_are_turned_as_numbers_of_the_complex_plane():
    # Three tokens before, which stay bit for bit.
    x = drawn((2, 3 + 6, 2, 64)).astype(np.float32)
    found = turn(jnp.asarray(x), GRID)
    np.testing.assert_array_equal(found[:, :3], x[:, :3])
    np.testing.assert_allclose(found, [turned(picture, GRID) for picture in x], rtol=1e-5, atol=1e-5)


def test_a_product_depends_on_the_difference_of_places_alone():
    q, k = (np.tile(drawn((1, 1, 1, 64), seed), (1, 20, 1, 1)) for seed in (0, 1))
    q, k = (np.asarray(turn(jnp.asarray(x, jnp.float32), (4, 5)), np.float64)[0, :, 0] for x in (q, k))
    products = (q @ k.T).reshape(4, 5, 4, 5)
    np.testing.assert_allclose(products[0, 1, 1, 3], products[2, 2, 3, 4], rtol=1e-4)
    assert abs(products[0, 1, 1, 3] - products[1, 3, 0, 1]) > 0.1  # of q and k in each other's places


@pytest.mark.usefixtures("optimised")
def test_attention_is_that_of_the_formula():
    model, width, before = Attention(2, turned=GRID), 128, 2
    x = drawn((1, before + 6, width)) / 2
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes["params"])
    assert {name: leaf.shape for name, leaf in params["qkv"].items()} == {
        "kernel": (width, 3 * width),
        "q_bias": (width,),
        "v_bias": (width,),
    }
    q, k, v = np.split(x[0] @ params["qkv"]["kernel"].astype(np.float64), 3, axis=1)
    q, v = q + params["qkv"]["q_bias"], v + params["qkv"]["v_bias"]
    q, k = (turned(part.reshape(-1, 2, 64), GRID).reshape(-1, width) for part in (q, k))
    mixed = np.zeros_like(q)
    for head in (slice(0, 64), slice(64, 128)):
        for t in range(len(q)):
            weights = [math.exp(sum(a * b for a, b in zip(q[t, head], k[s, head], strict=True)) / 8) for s in range(8)]
            mixed[t, head] = sum(w * v[s, head] for s, w in enumerate(weights)) / sum(weights)
    expected = mixed @ params["proj"]["kernel"] + params["proj"]["bias"]
    found = model.apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    first = model.apply({"params": params}, jnp.asarray(x, jnp.float32), 1)
    np.testing.assert_allclose(first[0], expected[:1], rtol=1e-4, atol=1e-5)


def test_a_bias_of_keys_would_count():
    # Without turning, q (k + b) is q k plus a number that is the same for all keys of a query.
    q, k, b = (drawn((1, 6, 1, 64), seed) for seed in range(3))
    b = np.repeat(b[:, :1], 6, axis=1)

    def weights(key, turning):
        parts = [turning(jnp.asarray(x, jnp.float32))[0, :, 0] for x in (q, key)]
        return jax.nn.softmax(parts[0] @ parts[1].T / 8)

    np.testing.assert_allclose(weights(k + b, lambda x: x), weights(k, lambda x: x), rtol=1e-4)
    assert np.abs(weights(k + b, lambda x: turn(x, GRID)) - weights(k, lambda x: turn(x, GRID))).max() > 0.05


def test_any_picture_that_the_patch_divides_has_features():
    model = ViT(1, 1, (2, 2), ViTOptions(patch=8, rotary=True))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)), train=False))
    assert "pos_embed" not in variables["params"]
    for edges in ((16, 16), (40, 24)):
        picture = jax.ShapeDtypeStruct((1, *edges, 1), jnp.float32)
        maps_of = functools.partial(model.apply, train=False, method="maps")
        (maps,) = jax.eval_shape(maps_of, variables, picture)
        assert maps.shape == (1, edges[0] // 8, edges[1] // 8, 64)


def test_the_oracle_worked_out_by_hand():
    # 1 + 2i turned by a quarter is -2 + i: of 4 features, the first pair by the row, the second by the column.
    x = np.array([1.0, 0.0, 2.0, 0.0]).reshape(1, 1, 4)
    assert cmath.isclose(cmath.exp(1j * math.pi / 2) * (1 + 2j), -2 + 1j)
    # A grid of one patch has the place 0: it stays.
    np.testing.assert_allclose(turned(x, (1, 1)), x)
    # Of two rows the first is at -1/2: half a turn.
    np.testing.assert_allclose(turned(np.tile(x, (2, 1, 1)), (2, 1))[0, 0], [-1, 0, -2, 0], atol=1e-12)
