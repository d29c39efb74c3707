"""The kernel, interpreted, against loops in float64; and lowered for machines that are not here."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec, use_abstract_mesh

from awcl_jax.losses import blockwise
from awcl_jax.losses.awcl import ABSENT, awcl_loss
from awcl_jax.losses.pallas import log_denominators
from awcl_jax.runtime import sharding
from awcl_jax.runtime.errors import InputError


def unit_rows(n: int, d: int = 8, *, near: float = 0.0, seed: int = 0) -> np.ndarray:
    """Unit rows; with `near`, all within about so much of one point."""
    z = np.random.default_rng(seed).normal(size=(n, d))
    if near:
        z = np.eye(d)[0] + near * z
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def slow(z, others, ids, other_ids, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """D(i), and the gradients of sum_i cos(i) D(i) to both sides, one pair at a time."""
    z, others = np.asarray(z, np.float64), np.asarray(others, np.float64)
    denominators, to_z, to_others = np.full(len(z), -np.inf), np.zeros_like(z), np.zeros_like(others)
    for i in range(len(z)):
        present = [k for k in range(len(others)) if other_ids[k] not in (ids[i], ABSENT)] if ids[i] != ABSENT else []
        logits = {k: z[i] @ others[k] / t for k in present}
        if not logits:
            continue
        top = max(logits.values())
        denominators[i] = top + math.log(sum(math.exp(logit - top) for logit in logits.values()))
        for k, logit in logits.items():
            weight = math.cos(i) * math.exp(logit - denominators[i]) / t
            to_z[i] += weight * others[k]
            to_others[k] += weight * z[i]
    return denominators, to_z, to_others


def found(z, others, ids, other_ids, t: float, *, dtype=jnp.float32, of=log_denominators, **blocks):
    """The same of the kernel; anchors against themselves where no others are given."""
    ids = jnp.asarray(ids)

    def weighted(z, others):
        others, theirs = (z, ids) if others is None else (others, jnp.asarray(other_ids))
        denominators = of(z, others, anchor_ids=ids, contrast_ids=theirs, temperature=t, **blocks)
        return jnp.where(jnp.isfinite(denominators), jnp.cos(jnp.arange(len(z))) * denominators, 0).sum(), denominators

    others = None if others is None else jnp.asarray(others, dtype)
    gradients, denominators = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(jnp.asarray(z, dtype), others)
    return denominators, *gradients


def assert_close(gradient, wanted, share: float):
    np.testing.assert_allclose(np.asarray(gradient, np.float64), wanted, atol=share * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("a", "n", "blocks"),
    [
        (1, 5, (64, 64)),
        pytest.param(16, 32, (16, 16), marks=pytest.mark.slow),  # dividing
        pytest.param(40, 70, (64, 64), marks=pytest.mark.slow),  # more than one block on one side only
        (40, 70, (16, 32)),  # several on both, none of them dividing
        pytest.param(70, 40, (32, 16), marks=pytest.mark.slow),
    ],
)
def test_anchors_against_other_rows(a, n, blocks):
    rows, order = unit_rows(max(a, n), d=20), np.random.default_rng(1).permutation(max(a, n))
    chosen = order[:a]  # self-pairs go by id and not by place
    arguments = rows[chosen], rows[:n], 7 + chosen, 7 + np.arange(n), 0.1
    denominators, to_z, to_others = found(*arguments, anchor_block=blocks[0], contrast_block=blocks[1])
    wanted, wanted_to_z, wanted_to_others = slow(*arguments)
    np.testing.assert_allclose(denominators, wanted, rtol=1e-5, atol=1e-5)
    assert_close(to_z, wanted_to_z, 1e-4)
    assert_close(to_others, wanted_to_others, 1e-4)


@pytest.mark.parametrize(
    ("n", "blocks"),
    [
        pytest.param(2, (64, 64), marks=pytest.mark.slow),
        pytest.param(16, (16, 16), marks=pytest.mark.slow),
        (50, (32, 16)),
    ],
)
def test_rows_against_themselves(n, blocks):
    z, ids = unit_rows(n, d=3), np.arange(n)
    denominators, gradient, _ = found(z, None, ids, ids, 0.1, anchor_block=blocks[0], contrast_block=blocks[1])
    wanted, *sides = slow(z, z, ids, ids, 0.1)
    np.testing.assert_allclose(denominators, wanted, rtol=1e-5)
    assert_close(gradient, sum(sides), 1e-4)


@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_numbers_are_those_of_the_blocks(symmetric):
    z, ids = unit_rows(33, d=128), np.arange(33)
    others = None if symmetric else unit_rows(21, d=128, seed=1)
    arguments = z, others, ids, 5 + np.arange(21), 0.07
    kernel, blocks = found(*arguments), found(*arguments, of=blockwise.log_denominators, block_size=8)
    np.testing.assert_allclose(kernel[0], blocks[0], rtol=1e-6)
    for gradient, wanted in zip(kernel[1:], blocks[1:], strict=True):
        if wanted is not None:
            assert_close(gradient, np.asarray(wanted), 1e-5)


@pytest.mark.parametrize(
    ("temperature", "near"),
    [(0.01, 1e-3), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0.01, 0.0), (1.0, 1e-3), (1.0, 0.0)])],
)
def test_low_temperatures_and_near_identical_rows_are_stable(temperature, near):
    # A row opposite to all others: its D is far below 0, and padding's logit 0 would drown it, or overflow beside it.
    z = np.concatenate([unit_rows(17, near=near), -unit_rows(1, near=near)])
    ids = np.arange(18)
    denominators, gradient, _ = found(z, None, ids, ids, temperature, anchor_block=16, contrast_block=16)
    wanted, *sides = slow(z, z, ids, ids, temperature)
    np.testing.assert_allclose(denominators, wanted, atol=2e-5 / temperature)
    # What is wrong in a logit is wrong in a weight: float32 has 1e-7 of 1/t.
    assert_close(gradient, sum(sides), 1e-5 + 1e-6 / temperature)


def test_a_row_of_logits_that_only_grow_and_one_that_only_fall():
    # The running maximum changes with every block, or never.
    angles = np.linspace(0.1, np.pi, 64)
    others = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    z = np.array([[1.0, 0.0], [-1.0, 0.0]])
    arguments = z, others, np.array([-1, -2]), np.arange(64), 0.01
    denominators, to_z, to_others = found(*arguments, anchor_block=16, contrast_block=16)
    wanted, wanted_to_z, wanted_to_others = slow(*arguments)
    np.testing.assert_allclose(denominators, wanted, rtol=1e-6)
    assert_close(to_z, wanted_to_z, 1e-4)
    assert_close(to_others, wanted_to_others, 1e-4)


def test_bfloat16_rows_are_summed_in_float32():
    z, others = (jnp.asarray(unit_rows(n, d=24, seed=n), jnp.bfloat16) for n in (20, 35))
    arguments = z, others, np.arange(20), np.arange(35), 0.1
    denominators, to_z, to_others = found(*arguments, dtype=jnp.bfloat16, anchor_block=16, contrast_block=16)
    wanted, wanted_to_z, wanted_to_others = slow(*arguments)
    assert (denominators.dtype, to_z.dtype, to_others.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(denominators, wanted, rtol=1e-5)
    assert_close(to_z, wanted_to_z, 2**-7)
    assert_close(to_others, wanted_to_others, 2**-7)


def test_rows_of_two_types_are_multiplied_in_float32():
    rounded = jnp.asarray(unit_rows(9), jnp.bfloat16)
    others = jnp.asarray(unit_rows(12, seed=1), jnp.float32)
    denominators = jax.jit(log_denominators, static_argnames="temperature")(
        rounded, others, anchor_ids=jnp.arange(9), contrast_ids=jnp.arange(12), temperature=0.1
    )
    np.testing.assert_allclose(denominators, slow(rounded, others, range(9), range(12), 0.1)[0], rtol=1e-6)


def test_a_row_alone_has_no_denominator_and_no_gradient():
    # The only contrast row is the first anchor itself; the second anchor has it.
    z, others = unit_rows(2), unit_rows(1)
    denominators, to_z, to_others = found(z, others, np.array([4, 5]), np.array([4]), 0.1)
    assert denominators[0] == -np.inf
    np.testing.assert_allclose(denominators[1], z[1] @ others[0] / 0.1, rtol=1e-5)
    np.testing.assert_array_equal(to_z[0], 0)
    np.testing.assert_allclose(to_others[0], math.cos(1) * z[1] / 0.1, rtol=1e-5)


def test_rows_that_are_absent_are_nobodys():
    ids = np.array([0, 1, ABSENT, 3, 3, ABSENT])
    z, others = unit_rows(6), unit_rows(6, seed=1)
    for of in (log_denominators, functools.partial(blockwise.log_denominators, block_size=4)):
        denominators, gradient, _ = found(z, None, ids, None, 0.1, of=of)
        wanted, *both_sides = slow(z, z, ids, ids, 0.1)
        np.testing.assert_allclose(denominators, wanted, rtol=1e-5)
        assert_close(gradient, sum(both_sides), 1e-5)
        denominators, gradient, to_others = found(z[:2], others, ids[:2], ids, 0.1, of=of)
        wanted, wanted_gradient, wanted_to_others = slow(z[:2], others, ids[:2], ids, 0.1)
        np.testing.assert_allclose(denominators, wanted, rtol=1e-5)
        assert_close(gradient, wanted_gradient, 1e-5)
        assert_close(to_others, wanted_to_others, 1e-5)


@pytest.mark.parametrize("block", [0, 8, 48, -16])
@pytest.mark.parametrize("side", ["anchor_block", "contrast_block"])
def test_block_sizes_are_powers_of_two(side, block):
    with pytest.raises(InputError, match=rf"{side} must be a power of 2 and at least 16; got {block}"):
        found(unit_rows(4), None, np.arange(4), None, 0.1, **{side: block})


# In the loss. -------------------------------------------------------------------------------------------------------


def loss_of(z, **options):
    ids = jnp.arange(len(z))
    return awcl_loss(
        z,
        z,
        anchor_ids=ids,
        contrast_ids=ids,
        anchor_groups=ids % 4,
        contrast_groups=ids % 4,
        temperature=0.1,
        **options,
    )


def test_the_loss_is_the_same_by_kernel_and_by_blocks():
    z = jnp.asarray(unit_rows(18, d=16), jnp.float32)
    kernel, blocks = (
        jax.jit(jax.value_and_grad(lambda z, kernel=kernel: loss_of(z, kernel=kernel).mean()))(z)
        for kernel in ("pallas", "auto")
    )
    np.testing.assert_allclose(kernel[0], blocks[0], rtol=1e-6)
    assert_close(kernel[1], np.asarray(blocks[1]), 1e-5)


def test_a_kernel_that_is_none_is_named_with_those_there_are():
    with pytest.raises(InputError, match="kernel must be one of auto, blocks, pallas; got 'triton'"):
        loss_of(jnp.ones((4, 2)), kernel="triton")


def test_the_kernel_has_blocks_of_its_own():
    with pytest.raises(InputError, match="leave block_size unset; got 64"):
        loss_of(jnp.ones((4, 2)), kernel="pallas", block_size=64)


# Over devices. ------------------------------------------------------------------------------------------------------


MESH = sharding.make_mesh(jax.devices()[:4])
SPREAD, WHOLE = sharding.rows_over_devices(MESH).spec, PartitionSpec()


@pytest.mark.parametrize("via", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_gathered_rows_have_the_gradient_of_one_device(via):
    z, ids = jnp.asarray(unit_rows(24), jnp.float32), jnp.arange(24)

    def body(z, ids):
        def total(z):
            contrast = sharding.gather({"z": z, "ids": ids})
            denominators = log_denominators(
                z, contrast["z"], anchor_ids=ids, contrast_ids=contrast["ids"], temperature=0.1
            )
            return (jnp.cos(ids) * denominators).sum()

        return jax.grad(total)(z)

    if via == "pmap":
        mapped = jax.pmap(body, axis_name=sharding.AXIS, devices=MESH.devices.tolist())
        gradient = mapped(z.reshape(4, 6, -1), ids.reshape(4, 6)).reshape(24, -1)
    else:
        gradient = jax.jit(jax.shard_map(body, mesh=MESH, in_specs=SPREAD, out_specs=SPREAD))(z, ids)
    _, *sides = slow(z, z, range(24), range(24), 0.1)
    assert_close(gradient, sum(sides), 1e-4)


def test_shared_rows_have_the_gradient_of_one_device():
    z, queue = jnp.asarray(unit_rows(8), jnp.float32), jnp.asarray(unit_rows(20, seed=1), jnp.float32)

    def body(z, weights, queue):
        def mean_loss(z, queue):
            denominators = log_denominators(
                z, queue, anchor_ids=jnp.full(len(z), -1), contrast_ids=jnp.arange(20), temperature=0.1
            )
            return sharding.mean((weights * denominators).mean())

        return jax.grad(mean_loss, (0, 1))(z, queue)

    mapped = jax.shard_map(body, mesh=MESH, in_specs=(SPREAD, SPREAD, WHOLE), out_specs=(SPREAD, WHOLE))
    to_z, to_queue = jax.jit(mapped)(z, jnp.cos(jnp.arange(8)), queue)
    _, wanted_to_z, wanted_to_queue = slow(z, queue, [-1] * 8, range(20), 0.1)
    assert_close(to_z, wanted_to_z / 8, 1e-4)
    assert_close(to_queue, wanted_to_queue / 8, 1e-4)


# For other machines. ------------------------------------------------------------------------------------------------

CALLS = {"cuda": "__gpu$xla.gpu.triton", "rocm": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
GPUS = {"cuda": "NVIDIA H100 80GB HBM3", "rocm": "gfx942"}  # newer versions of JAX lower for one that they know


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("platform", CALLS)
def test_it_lowers_for_accelerators_without_an_n_x_n_matrix(platform, symmetric, dtype):
    a, n = (1000, 1000) if symmetric else (1000, 3000)

    def total(z, others):
        ids = jnp.arange(a)
        rows, theirs = (z, ids) if symmetric else (others, jnp.arange(n))
        return log_denominators(z, rows, anchor_ids=ids, contrast_ids=theirs, temperature=0.1).sum()

    shapes = jax.ShapeDtypeStruct((a, 96), dtype), jax.ShapeDtypeStruct((n, 96), dtype)
    device = AbstractDevice(GPUS[platform], None, platform) if platform in GPUS else None
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        lowered = jax.jit(jax.grad(total, (0, 1))).trace(*shapes).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    # Forward, and a gradient for both sides at once or for each.
    assert text.count(CALLS[platform]) == (2 if symmetric else 3)
    numbers = [math.prod(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)", text)]
    assert max(numbers) < a * n
