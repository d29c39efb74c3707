"""Optimisers and learning rates, against their formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from awcl_jax.models.vit import ViT, frozen_parameters, layer_of
from awcl_jax.runtime.errors import InputError
from awcl_jax.train.optim import freeze, global_norm, learning_rate_schedule, make_optimiser, scale_updates

KERNEL, BIAS = np.array([[1.0, -2.0], [0.5, 4.0]]), np.array([3.0, -1.0])
GRADS = [
    {"kernel": np.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": np.array([0.5, -0.6])},
    {"kernel": np.array([[-0.7, 0.1], [0.2, 0.9]]), "bias": np.array([-0.1, 0.3])},
]


def after(name, grads=GRADS, *, rate=0.1, **options):
    """Return the parameters after a step with each of these gradients."""
    optimiser = make_optimiser(name, learning_rate=optax.constant_schedule(rate), **options)
    params = {"kernel": jnp.asarray(KERNEL), "bias": jnp.asarray(BIAS)}
    state = optimiser.init(params)
    for grad in grads:
        updates, state = optimiser.update({k: jnp.asarray(g) for k, g in grad.items()}, state, params)
        params = optax.apply_updates(params, updates)
    return params


def adam(p, grads, *, rate=0.1, l2=0.0, decoupled=0.0):
    """Kingma & Ba 2015, algorithm 1; `l2` as in PyTorch's Adam, `decoupled` as Loshchilov & Hutter 2019."""
    m = v = np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        g = g + l2 * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        p = p - rate * (step + decoupled * p)
    return p


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("adam", "l2"), ("adamw", "decoupled")])
def test_adam_decays_the_gradient_and_adamw_the_update(name, kind, decay_all):
    params = after(name, weight_decay=0.2, decay_all=decay_all)
    kernel = adam(KERNEL, [g["kernel"] for g in GRADS], **{kind: 0.2})
    bias = adam(BIAS, [g["bias"] for g in GRADS], **({kind: 0.2} if decay_all else {}))
    np.testing.assert_allclose(params["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("decay_all", [False, True])
def test_sgd_has_momentum_and_decays_kernels(decay_all):
    params = after("sgd", weight_decay=0.2, decay_all=decay_all)
    for key, p in (("kernel", KERNEL), ("bias", BIAS)):
        decay, momentum = (0.2 if key == "kernel" or decay_all else 0.0), np.zeros_like(p)
        for grad in GRADS:
            momentum = 0.9 * momentum + grad[key] + decay * p
            p = p - 0.1 * momentum
        np.testing.assert_allclose(params[key], p, rtol=1e-5)


def test_lars_scales_a_kernels_step_by_its_norm_but_no_bias():
    params = after("lars", GRADS[:1], weight_decay=0.2)
    # You et al. 2017, equation 6: rate * 0.001 * |w| / |g + decay w| * (g + decay w).
    g = GRADS[0]["kernel"] + 0.2 * KERNEL
    ratio = 0.001 * np.linalg.norm(KERNEL) / np.linalg.norm(g)
    np.testing.assert_allclose(params["kernel"], KERNEL - 0.1 * ratio * g, rtol=1e-6)
    np.testing.assert_allclose(params["bias"], BIAS - 0.1 * GRADS[0]["bias"], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "sgd"])
def test_every_optimiser_goes_downhill(name):
    params = after(name, GRADS[:1])
    for key, start in (("kernel", KERNEL), ("bias", BIAS)):
        assert (np.sign(start - params[key]) == np.sign(GRADS[0][key])).all()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_kernels_of_zero_gradient_shrink_and_biases_stay(name):
    still = [{"kernel": np.zeros((2, 2)), "bias": np.zeros(2)}]
    params = after(name, still, rate=0.01, weight_decay=0.5)
    assert (np.abs(params["kernel"]) < np.abs(KERNEL)).all()
    np.testing.assert_array_equal(params["bias"], BIAS)


@pytest.mark.parametrize(("clip_norm", "factor"), [(None, 1.0), (1000.0, 1.0), (1.0, 0.1)])
def test_clipping_scales_the_gradient_of_all_parameters(clip_norm, factor):
    # The norm over all six numbers is 10, that of the kernel 6.
    grads = [{"kernel": np.full((2, 2), 3.0), "bias": np.array([8.0, 0.0])}]
    params = after("sgd", grads, rate=1.0, clip_norm=clip_norm)
    np.testing.assert_allclose(params["kernel"], KERNEL - factor * 3.0, rtol=1e-6)
    np.testing.assert_allclose(params["bias"], BIAS - factor * np.array([8.0, 0.0]), rtol=1e-6)


VIT = {
    "encoder": {
        "pos_embed": np.ones((2, 2, 3)),
        "reg_token": np.ones((2, 3)),
        "blocks_0": {"mlp": {"kernel": np.ones((3, 3)), "bias": np.ones(3)}, "gamma": np.ones(3)},
    },
    "projection": {"kernel": np.ones((3, 2))},
}


def vit_after(optimiser, gradient):
    """Return the parameters after a step with this number as every gradient."""
    params = jax.tree.map(jnp.asarray, VIT)
    updates, _ = optimiser.update(
        jax.tree.map(lambda p: jnp.full_like(p, gradient), params), optimiser.init(params), params
    )
    return optax.apply_updates(params, updates)


def test_tokens_positions_and_factors_do_not_decay():
    params = vit_after(make_optimiser("adamw", learning_rate=optax.constant_schedule(0.1), weight_decay=0.5), 0.0)
    encoder = params["encoder"]
    for kept in (
        encoder["pos_embed"],
        encoder["reg_token"],
        encoder["blocks_0"]["mlp"]["bias"],
        encoder["blocks_0"]["gamma"],
    ):
        np.testing.assert_array_equal(kept, 1)
    for decayed in (encoder["blocks_0"]["mlp"]["kernel"], params["projection"]["kernel"]):
        np.testing.assert_allclose(decayed, 1 - 0.1 * 0.5, rtol=1e-6)


def test_the_learning_rate_falls_by_layer_with_its_decay():
    # Of 2 blocks: the projection is layer 3, block 0 layer 1, positions layer 0. AdamW's step is rate * (1 + decay).
    adamw = make_optimiser("adamw", learning_rate=optax.constant_schedule(0.1), weight_decay=0.5)
    params = vit_after(scale_updates(adamw, lambda path: 0.5 ** (3 - layer_of(path, depth=2))), 2.0)
    encoder = params["encoder"]
    np.testing.assert_allclose(params["projection"]["kernel"], 1 - 0.15, rtol=1e-5)
    np.testing.assert_allclose(encoder["blocks_0"]["mlp"]["kernel"], 1 - 0.15 / 4, rtol=1e-5)
    np.testing.assert_allclose(encoder["blocks_0"]["mlp"]["bias"], 1 - 0.1 / 4, rtol=1e-5)
    np.testing.assert_allclose(encoder["pos_embed"], 1 - 0.1 / 8, rtol=1e-5)


@pytest.mark.parametrize(
    ("trained", "patches", "frozen"),
    [
        (None, True, {"patch_kernel", "patch_bias"}),
        (1, False, {"patch_kernel", "patch_bias", "cls_token", "pos_embed", "norm_pre", "blocks_0"}),
        (2, False, {"patch_kernel", "patch_bias", "cls_token", "pos_embed", "norm_pre"}),
        (None, False, set()),
    ],
)
def test_what_is_frozen(trained, patches, frozen):
    of = frozen_parameters(ViT(2, 1, (1, 1), train_blocks=trained, freeze_patches=patches))
    names = ("patch_kernel", "patch_bias", "cls_token", "pos_embed", "norm_pre", "blocks_0", "blocks_1", "norm")
    assert {name for name in names if of(("encoder", name, "kernel"))} == frozen
    assert not of(("projection", "hidden", "kernel"))


def test_frozen_parameters_neither_move_nor_decay():
    adamw = make_optimiser("adamw", learning_rate=optax.constant_schedule(0.1), weight_decay=0.5)
    params = vit_after(freeze(adamw, lambda path: path[0] == "encoder"), 2.0)
    jax.tree.map(lambda p: np.testing.assert_array_equal(p, 1), params["encoder"])
    np.testing.assert_allclose(params["projection"]["kernel"], 1 - 0.15, rtol=1e-5)


def test_an_unknown_optimiser_is_named():
    with pytest.raises(InputError, match="Unknown optimiser 'adan'; must be one of adam, adamw, lars, sgd"):
        make_optimiser("adan", learning_rate=optax.constant_schedule(0.1))


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "rates"),
    [
        # 0.5 * (1 + cos(pi * (step - 2) / 8)) after the warm-up: 1 at step 2, 0.8536 at 4, 0.5 at 6, 0 at 10.
        ("cosine", 2, {0: 0.0, 1: 0.5, 2: 1.0, 4: 0.853553, 6: 0.5, 10: 0.0}),
        ("cosine", 0, {0: 1.0, 5: 0.5, 10: 0.0}),
        ("constant", 4, {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 9: 1.0}),
        ("constant", 0, {0: 1.0, 1: 1.0, 9: 1.0}),
    ],
)
def test_the_learning_rate_warms_up_and_decays(schedule, warmup_steps, rates):
    rate = learning_rate_schedule(peak=3.0, steps=10, warmup_steps=warmup_steps, schedule=schedule)
    assert {step: float(rate(step)) for step in rates} == pytest.approx(
        {s: 3.0 * r for s, r in rates.items()}, abs=1e-5
    )


@pytest.mark.parametrize("warmup_steps", [10, 11])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup_steps):
    with pytest.raises(InputError, match=f"Warm-up takes {warmup_steps} steps of a run of 10"):
        learning_rate_schedule(peak=1.0, steps=10, warmup_steps=warmup_steps)


def test_an_unknown_schedule_is_named():
    with pytest.raises(InputError, match="Unknown schedule 'linear'; must be one of cosine, constant"):
        learning_rate_schedule(peak=1.0, steps=10, warmup_steps=0, schedule="linear")


def test_the_norm_of_a_tree_is_that_of_all_its_numbers():
    tree = {"kernel": jnp.asarray(KERNEL), "bias": (jnp.asarray(BIAS), jnp.float32(2.0))}
    expected = np.linalg.norm(np.concatenate([KERNEL.ravel(), BIAS, [2.0]]))
    np.testing.assert_allclose(global_norm(tree), expected, rtol=1e-6)
