"""The vision transformer, its positions and its options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.models import parts
from awcl_jax.models.positions import resample_positions, resample_weights
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import ViT, ViTOptions, make_vit
from awcl_jax.runtime.errors import InputError
from tests.helpers.slow_rotary import turned


def tiny(depth=2, heads=1, grid=(3, 3), *, patch=8, **changes):
    names = set(ViTOptions.__dataclass_fields__)
    options = ViTOptions(patch=patch, **{name: value for name, value in changes.items() if name in names})
    return ViT(depth, heads, grid, options, **{name: value for name, value in changes.items() if name not in names})


def random_params(model, seed=0):
    """All parameters random, also those that begin as zeros or ones."""
    edge = model.patch
    shapes = variable_shapes(model, edge, 1)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes["params"])


def frames(count=2, edge=24, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, edge, edge, 1)), jnp.float32)


def applied(model, params, x, *, train=False, method=None, **more):
    return jax.jit(lambda params, x: model.apply({"params": params}, x, train=train, method=method, **more))(params, x)


def layer_norm(x, part, epsilon=1e-6):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * part["scale"] + part["bias"]


def by_hand(params, picture, patch, grid, registers):
    """Return the tokens of one picture by loops in float64 (Dosovitskiy et al. 2021, Eq. 1 to 4)."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    tokens = [p["cls_token"], *(p["reg_token"] if registers else [])]
    for row in range(grid[0]):
        for column in range(grid[1]):
            patch_of = picture[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            token = np.einsum("hwc,hwcd->d", patch_of.astype(np.float64), p["patch_kernel"]) + p["patch_bias"]
            tokens.append(token + p["pos_embed"][row, column] if "pos_embed" in p else token)
    x = np.stack(tokens)
    erf = np.vectorize(__import__("math").erf)
    for block in (p[f"blocks_{i}"] for i in range(2)):
        y = layer_norm(x, block["norm1"])
        bias = block["attn"]["qkv"]
        bias = bias["bias"] if "bias" in bias else np.concatenate([bias["q_bias"], np.zeros(64), bias["v_bias"]])
        q, k, v = np.split(y @ block["attn"]["qkv"]["kernel"] + bias, 3, axis=1)
        if "pos_embed" not in p:
            q, k = (turned(part[:, None], grid)[:, 0] for part in (q, k))
        weights = np.exp(q @ k.T / np.sqrt(64))
        y = weights / weights.sum(axis=1, keepdims=True) @ v
        x = x + y @ block["attn"]["proj"]["kernel"] + block["attn"]["proj"]["bias"]
        y = layer_norm(x, block["norm2"]) @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        y = y * (1 + erf(y / np.sqrt(2))) / 2
        x = x + y @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    return layer_norm(x, p["norm"])


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("registers", "rotary"), [(0, False), (2, False), (2, True)])
def test_tokens_are_those_of_the_formula(registers, rotary):
    model = tiny(registers=registers, rotary=rotary)
    params = random_params(model)
    found = applied(model, params, frames(), method="tokens")
    expected = np.stack([by_hand(params, picture, 8, (3, 3), registers) for picture in np.asarray(frames())])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm_after", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pooling(norm_after):
    models = {pool: tiny(depth=1, pool=pool, registers=1, norm_after=norm_after) for pool in ("token", "mean", "both")}
    params = random_params(models["token"])
    cls, mean, both = (np.asarray(applied(model, params, frames())) for model in models.values())
    np.testing.assert_allclose(both, np.concatenate([cls, mean], axis=1), rtol=1e-5, atol=1e-6)
    (of_patches,) = applied(models["mean"], params, frames(), method="maps")
    assert of_patches.shape == (2, 3, 3, 64)
    if norm_after:  # the mean of normalised tokens is another
        assert not np.allclose(mean, of_patches.mean(axis=(1, 2)), atol=1e-2)
    else:
        np.testing.assert_allclose(mean, of_patches.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_a_map_is_in_the_order_of_the_picture():
    # Without blocks and with a kernel that sums a patch, the map shows where the picture is bright.
    model = tiny(depth=0)
    params = random_params(model)
    params["pos_embed"][:], params["patch_kernel"][..., 0], params["patch_kernel"][..., 1:] = 0, 1, 0
    picture = np.zeros((1, 24, 24, 1), np.float32)
    picture[0, 8:16, 16:] = 1  # row 1, column 2
    picture = jnp.asarray(picture)
    (found,) = model.apply({"params": params}, picture, train=False, method="maps")
    others = np.delete(np.asarray(found).reshape(9, 64), 5, axis=0)
    assert np.ptp(others, axis=0).max() < 1e-6
    assert not np.allclose(found[0, 1, 2], others[0])


def test_another_size_has_resampled_positions():
    model, larger = tiny(), tiny(grid=(4, 4))
    params = random_params(model)
    table = resample_positions(params["pos_embed"], (4, 4), way="antialiased")
    x = frames(edge=32)
    found = applied(model, params, x)
    np.testing.assert_allclose(found, applied(larger, {**params, "pos_embed": table}, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["antialiased", "plain", "offset", "corners"])
def test_a_constant_table_stays_constant(way):
    for rows, wanted in ((4, 7), (7, 3), (1, 4), (5, 5)):
        np.testing.assert_allclose(resample_weights(rows, wanted, way=way).sum(axis=1), 1, rtol=1e-12)


def test_cubic_weights_worked_out_by_hand():
    # From 2 rows to 4, plain: row 0 is at -1/4. With a = -3/4, k(1/4) = 0.8789, k(5/4) = -0.1055 and k(7/4), k(3/4),
    # whose rows -1 and -2 are row 0: all of k(7/4) + k(3/4) + k(1/4) = 1 - k(5/4) is on row 0.
    first = resample_weights(2, 4, way="plain")[0]
    np.testing.assert_allclose(first, [1.10546875, -0.10546875])
    # Corners: the ends stay, and from 2 rows to 3 the middle is k(1/2) of both, and of the rows beyond: a half each.
    np.testing.assert_allclose(resample_weights(2, 3, way="corners"), [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-12)
    # Antialiased, a = -1/2, from 2 to 4: k(1/4) = 0.8672 and k(5/4) = -0.0703 of the two rows, to sum 1.
    np.testing.assert_allclose(
        resample_weights(2, 4, way="antialiased")[0], np.array([0.8671875, -0.0703125]) / 0.796875
    )


def gradient(model, params, keys=None):
    def loss(params):
        return (model.apply({"params": params}, frames(), train=True, keys=keys) ** 2).sum()

    return jax.jit(jax.grad(loss))(params)


@pytest.mark.parametrize("rotary", [pytest.param(False, marks=pytest.mark.slow), True])
def test_blocks_computed_again_have_the_same_gradient(rotary):
    params = random_params(tiny(rotary=rotary))
    kept, again = (gradient(tiny(remat=remat, rotary=rotary), params) for remat in (False, True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), again, kept)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"registers": 2, "layer_scale": True, "norm_after": True}, marks=pytest.mark.slow),
        {"registers": 2, "rotary": True},
    ],
)
def test_the_class_token_is_that_of_all_tokens(options):
    # A call leaves out what the last block computes of other tokens; `tokens` has all of them.
    model = tiny(**options)
    plain = tiny(**options | {"norm_after": False})
    params = random_params(model)

    def gradient_of(features):
        return jax.jit(jax.value_and_grad(lambda params: (features(params) ** 2).sum()))(params)

    found = gradient_of(lambda params: model.apply({"params": params}, frames(), train=True))
    expected = gradient_of(lambda params: plain.apply({"params": params}, frames(), train=True, method="tokens")[:, 0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("rotary", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_only_the_last_blocks_get_a_gradient(rotary):
    params = random_params(tiny(rotary=rotary))
    full, part = (gradient(tiny(rotary=rotary, train_blocks=count), params) for count in (None, 1))
    trained = {"blocks_1", "norm"}
    for name in params:
        nonzero = any(np.any(leaf) for leaf in jax.tree.leaves(part[name]))
        assert nonzero == (name in trained), name
    for name in trained:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), part[name], full[name])


def test_frozen_patches_get_no_gradient():
    params = random_params(tiny())
    found = gradient(tiny(freeze_patches=True), params)
    assert not found["patch_kernel"].any()
    assert not found["patch_bias"].any()
    assert found["pos_embed"].any()


def test_skipped_blocks_are_drawn_by_the_picture():
    model = tiny(drop_path=0.9)
    params = random_params(model)
    keys = jax.random.split(jax.random.key(0), 64)
    picture = jnp.repeat(frames(1), 64, axis=0)
    features = np.asarray(applied(model, params, picture, train=True, keys=keys))
    # The first block is never skipped; of the last, each half is with probability 0.9.
    kinds = np.unique(features.round(3), axis=0)
    assert 2 <= len(kinds) <= 4
    alone = applied(model, params, picture[:8], train=True, keys=keys[8:16])
    np.testing.assert_allclose(alone, features[8:16], rtol=1e-4, atol=1e-5)
    full = np.asarray(applied(tiny(), params, picture[:1]))
    still = np.asarray(applied(model, params, picture[:1]))
    np.testing.assert_allclose(still, full, rtol=1e-6)


@pytest.mark.parametrize("rotary", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bfloat16_is_close_and_returns_float32(rotary):
    params = random_params(tiny(rotary=rotary))
    models = (tiny(dtype=dtype, rotary=rotary) for dtype in (jnp.float32, jnp.bfloat16))
    exact, rounded = (applied(model, params, frames()) for model in models)
    assert rounded.dtype == jnp.float32
    apart = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 1e-5 < apart < 0.05


@pytest.mark.parametrize(
    ("arch", "patch", "parameters"),
    [
        ("vit_tiny", 16, 5_524_416),
        ("vit_small", 16, 21_665_664),
        ("vit_base", 16, 85_798_656),
        ("vit_large", 14, 303_178_752),
    ],
)
def test_parameters_count_as_timms(arch, patch, parameters):
    # timm 1.0: sum(p.numel()) of {arch}_patch{patch}_224 with num_classes=0, which has 3 channels and a position of the
    # class token.
    model = make_vit(arch, size=224, options=ViTOptions(patch=patch))
    shapes = variable_shapes(model, 224, 3)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) + model.width == parameters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "vit_huge"}, r"arch must be one of vit_tiny, .*; got 'vit_huge'"),
        ({"size": 100}, r"multiple of the patch of 16 pixels; got 100, try 96 or 112"),
        ({"size": 8}, r"multiple of the patch of 16 pixels; got 8, try 16"),
        ({"options": ViTOptions(patch=15)}, r"patch must be one of 8, 14, 16; got 15"),
        ({"options": ViTOptions(pool="max")}, r"pool must be one of token, mean, both; got 'max'"),
        ({"options": ViTOptions(activation="relu")}, r"activation must be one of gelu"),
        ({"options": ViTOptions(drop_path=1.0)}, r"drop_path must be from 0 to below 1; got 1.0"),
        ({"options": ViTOptions(rotary=True, pre_norm=True)}, r"rotary must be False with pre_norm.*; got True"),
        ({"train_blocks": 13}, r"train_blocks must be from 1 to its 12 blocks; got 13"),
        ({"width_factor": 0}, r"width factor must be above 0"),
    ],
)
def test_bad_options_are_named(changes, said):
    with pytest.raises(InputError, match=said):
        make_vit(**{"arch": "vit_small", "size": 224} | changes)


def test_a_picture_that_the_patch_does_not_divide_is_bad_input():
    with pytest.raises(InputError, match="multiples of the patch of 8 pixels; got 20 x 20"):
        tiny().apply({"params": random_params(tiny())}, frames(edge=20), train=False)


def activation_bytes(**options):
    """Return the memory of a gradient beside its arguments and results."""
    model = tiny(depth=6, grid=(8, 8), **options)
    params = random_params(model)

    def loss(params, x):
        return (model.apply({"params": params}, x, train=True) ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, frames(16, edge=64)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_blocks_that_do_not_learn_keep_no_activations():
    assert activation_bytes(train_blocks=1) < 0.5 * activation_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_a_block_keeps_the_results_of_products_or_only_its_input(monkeypatch):
    monkeypatch.setattr(parts, "_TOKENS", 2 * 65)
    tokens = 16 * 65 * 64 * 4  # bytes of all tokens
    # Input, queries, keys and values, their mixture, the sum, and four times as wide: 10 in each of 6 blocks, of which
    # the last keeps fewer. Beside them are two at a time between blocks, and what two pictures need.
    assert activation_bytes() < (6 * 10 + 5) * tokens
    assert activation_bytes(remat=True) < (6 * 1 + 12) * tokens
