"""Convolutions and their gradients against sums over shifted maps in float64, and what they cost."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from awcl_jax.models import convolution, winograd
from awcl_jax.models.convolution import convolve
from awcl_jax.runtime import sharding

# Kernel, stride and padding of every convolution in the encoders.
KINDS = [(7, 2, 3), (3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0)]


@pytest.fixture(autouse=True, params=["in parts", "xla"])
def way(request, monkeypatch):
    """How they are computed: in parts of the batch if all count as large."""
    if request.param == "xla":
        with convolution.left_to_xla():
            yield request.param
        return
    monkeypatch.setattr(convolution, "_LARGE", 0)
    yield request.param


def xla(x, kernel, *, stride, padding):
    pad = (padding, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def drawn(shape, features, kernel, *, seed=0):
    """Maps and a kernel in float64, of about unit size in and out."""
    rng = np.random.default_rng(seed)
    size = (kernel, kernel, shape[-1], features)
    return rng.normal(size=shape), rng.normal(size=size) / np.sqrt(kernel**2 * shape[-1])


def with_gradients(convolution, x, kernel, dtype):
    """The maps that come out and the gradients of a sum with fixed weights, to maps and kernel, in float64."""

    def weighted(x, kernel):
        y = convolution(x, kernel)
        return (y * weights_like(y).astype(jnp.float32)).sum(), y

    call = jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))
    (_, y), gradients = call(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
    assert {a.dtype for a in (y, *gradients)} == {jnp.dtype(dtype)}
    return [np.asarray(a, np.float64) for a in (y, *gradients)]


def weights_like(y):
    return np.cos(np.arange(y.size)).reshape(y.shape)


def in_float64(x, kernel, *, stride, padding):
    """What `with_gradients` gives, in NumPy: every number of the kernel meets maps that are shifted by its place."""
    edge = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = ((size - edge) // stride + 1 for size in padded.shape[1:3])
    places = {
        (i, j): np.s_[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(edge)
        for j in range(edge)
    }
    y = sum(padded[place] @ kernel[at] for at, place in places.items())
    gradient = weights_like(y)
    to_padded, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for at, place in places.items():
        to_padded[place] += gradient @ kernel[at].T
        to_kernel[at] = np.einsum("bhwc,bhwo->co", padded[place], gradient)
    height, width = x.shape[1:3]
    return [y, to_padded[:, padding : padding + height, padding : padding + width], to_kernel]


def error(found, expected):
    """Largest difference of maps, or of their gradients, as a share of the largest number."""
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("kernel", "stride", "padding"), KINDS)
@pytest.mark.parametrize(
    ("batch", "edges", "features"),
    [
        (3, (8, 8), (1, 4)),
        pytest.param(3, (7, 10), (6, 5), marks=pytest.mark.slow),
        (3, (2, 3), (6, 5)),  # maps of a few pixels
        (32, (7, 10), (8, 16)),
        pytest.param(32, (2, 3), (8, 16), marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_in_float64(kernel, stride, padding, edges, batch, features):
    x, weights = drawn((batch, *edges, features[0]), features[1], kernel)
    options = {"stride": stride, "padding": padding}
    found = with_gradients(functools.partial(convolve, **options), x, weights, jnp.float32)
    assert error(found, in_float64(x, weights, **options)) < 3e-6


@pytest.mark.parametrize(("kernel", "stride", "padding"), KINDS)
def test_bfloat16_keeps_its_type_and_precision(kernel, stride, padding):
    x, weights = (np.asarray(jnp.bfloat16(a), np.float64) for a in drawn((2, 8, 8, 6), 5, kernel))
    options = {"stride": stride, "padding": padding}
    found = with_gradients(functools.partial(convolve, **options), x, weights, jnp.bfloat16)
    assert error(found, in_float64(x, weights, **options)) < 1e-2  # half a unit of the last place is 2e-3


@pytest.mark.parametrize(("kernel", "stride", "padding"), KINDS)
def test_devices_sum_the_gradient_of_the_kernel(kernel, stride, padding):
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((8, 8, 8, 4), 4, kernel))
    mesh = sharding.make_mesh(jax.devices()[:4])

    def gradient_on(run):
        loss = lambda kernel: (run(x, kernel) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(weights)

    one = functools.partial(convolve, stride=stride, padding=padding)
    rows = PartitionSpec(sharding.AXIS)
    many = jax.shard_map(one, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
    np.testing.assert_allclose(gradient_on(many), gradient_on(one), rtol=1e-4, atol=1e-4)


def test_only_large_convolutions_are_computed_in_parts(way, monkeypatch):
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((16, 8, 8, 4), 4, 3))
    operations = 2 * 16 * 8 * 8 * 4 * 4 * 9

    def loops():
        return "scan" in str(jax.make_jaxpr(lambda x, k: convolve(x, k, padding=1))(x, weights))

    monkeypatch.setattr(convolution, "_LARGE", operations)
    assert loops() == (way == "in parts")
    monkeypatch.setattr(convolution, "_LARGE", operations + 1)
    assert not loops()


@pytest.mark.parametrize(
    ("images", "padding"),
    [
        *((1, 1), (5, 0), (6, 2), (64, 1)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((5, 1), (5, 2), (6, 0), (6, 1), (64, 0), (64, 2))),
    ],
)
def test_parts_of_any_number_of_images_are_one_batch(padding, images):
    x, weights = drawn((images, 5, 8, 3), 4, 3)
    options = {"stride": 1, "padding": padding}
    found = with_gradients(functools.partial(convolve, **options), x, weights, jnp.float32)
    assert error(found, in_float64(x, weights, **options)) < 3e-6


def test_float32_stays_whatever_the_default():
    x, weights = drawn((6, 5, 8, 3), 4, 3)
    with jax.enable_x64(True):
        found = with_gradients(functools.partial(convolve, padding=1), x, weights, jnp.float32)
    assert error(found, in_float64(x, weights, stride=1, padding=1)) < 3e-6


def test_winograd_multiplies_less_than_half_as_often():
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((16, 8, 8, 32), 32, 3))
    call = jax.make_jaxpr(lambda x, k: winograd.convolve(x, k, 1))(x, weights)
    (loop,) = find_all(call.jaxpr, "scan")
    products = find_all(loop.params["jaxpr"].jaxpr, "dot_general")
    multiplied = loop.params["length"] * sum(2 * math.prod(eqn.outvars[0].aval.shape) * 32 for eqn in products)
    assert multiplied == 2 * x.size * weights.size / 32 * 16 / 36


def test_winograds_gradients_of_maps_and_kernel_are_made_in_one_loop():
    # In a loop for each, XLA leaves those of the kernels for the end of a step, and keeps the maps of all layers.
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((16, 8, 8, 4), 4, 3))

    def loss(x, kernel):
        return (winograd.convolve(x, kernel, 1) ** 2).sum()

    loops = find_all(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, weights).jaxpr, "scan")
    forward, backward = (len(find_all(loop.params["jaxpr"].jaxpr, "dot_general")) for loop in loops)
    assert (forward, backward) == (16, 2 * 16)


def find_all(jaxpr, name):
    """The equations of a primitive, inside calls too."""
    found = []
    for eqn in jaxpr.eqns:
        found += [eqn] if eqn.primitive.name == name else []
        for inner in eqn.params.values():
            inner = getattr(inner, "jaxpr", inner)
            found += find_all(inner, name) if hasattr(inner, "eqns") else []
    return found


def test_accelerators_get_the_convolution_of_xla(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((2, 8, 8, 4), 4, 3))
    call = jax.make_jaxpr(functools.partial(convolve, stride=1, padding=1))(x, weights)
    assert [equation.primitive.name for equation in call.eqns] == ["conv_general_dilated"]


def compiled_gradient(x, kernel, argnums, **options):
    def loss(x, kernel):
        return (convolve(x, kernel, **options) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=argnums)).lower(x, kernel).compile()


def test_the_first_layer_computes_no_gradient_of_the_frames():
    x, weights = (jnp.asarray(a, jnp.float32) for a in drawn((2, 32, 32, 1), 8, 7))
    operations = [
        compiled_gradient(x, weights, argnums, stride=2, padding=3).cost_analysis()["flops"] for argnums in (1, (0, 1))
    ]
    # Forward and the kernel's gradient, and the maps' gradient, which is as much as either at least.
    assert operations[0] < 0.7 * operations[1]
