"""Features of frames, a batch at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from awcl_jax.evaluate.encode import encode_batches, encode_frames

pytestmark = pytest.mark.quick

PICTURES = np.random.default_rng(0).integers(0, 256, (23, 4, 5), np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)


class Reader:
    """A reader of `PICTURES` that records the size of each batch."""

    def __init__(self):
        self.sizes = []

    def read(self, frames):
        self.sizes.append(len(frames))
        return PICTURES[frames]


@jax.jit
def linear(variables, images):
    return images.reshape(len(images), -1).astype(jnp.float32) @ variables["weights"]


def encode(frames, batch_size, reader=None):
    return encode_frames(
        linear, {"weights": jnp.asarray(WEIGHTS)}, reader or Reader(), np.asarray(frames), batch_size=batch_size
    )


@pytest.mark.parametrize("batch_size", [1, 4, 7, 22, 23, 24, 100])
def test_features_are_those_of_each_frame_whatever_the_batch_size(batch_size):
    expected = PICTURES.reshape(23, -1).astype(np.float64) @ WEIGHTS
    features = encode(range(23), batch_size)
    assert features.shape == (23, 3)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-2)


def test_features_come_in_the_order_of_the_frames():
    order = np.random.default_rng(2).permutation(23)[:17]
    np.testing.assert_allclose(encode(order, 5), encode(range(23), 23)[order], rtol=1e-5, atol=1e-3)


def test_every_batch_has_one_shape():
    shapes = []

    def encode(variables, images):
        shapes.append(images.shape)
        return linear(variables, images)

    features = encode_frames(encode, {"weights": WEIGHTS}, Reader(), np.arange(23), batch_size=9)
    assert features.shape == (23, 3)
    assert len(set(shapes)) == 1
    assert shapes[0][0] == -(-9 // jax.local_device_count()) * jax.local_device_count()


def test_no_frame_is_read_twice():
    reader = Reader()
    encode(range(23), 8, reader)
    assert reader.sizes == [8, 8, 7]


def test_batches_may_be_of_any_size_up_to_the_greatest():
    sizes = [3, 8, 1, 8, 3]
    batches = np.split(PICTURES, np.cumsum(sizes)[:-1])
    found = list(encode_batches(linear, {"weights": WEIGHTS}, iter(batches), batch_size=8))
    assert [len(features) for features in found] == sizes
    np.testing.assert_allclose(np.concatenate(found), encode(range(23), 23), rtol=1e-5, atol=1e-3)


def test_variables_may_be_spread_over_devices():
    from awcl_jax.runtime import sharding

    spread = sharding.replicate({"weights": WEIGHTS}, sharding.make_mesh())
    features = encode_frames(linear, spread, Reader(), np.arange(23), batch_size=8)
    np.testing.assert_allclose(features, encode(range(23), 8), rtol=1e-6)
