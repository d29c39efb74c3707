"""Exports of a stranger: their numbers are limited and their function is looked through before it runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from awcl_jax.config.exported import read_description
from awcl_jax.embed.exported import _written_out, read_export
from awcl_jax.export.jax_function import write_jax
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.resnet import make_resnet
from awcl_jax.runtime.errors import InputError

pytestmark = pytest.mark.quick

SIZE = 8


def folder_of(folder, **changed):
    """Write the description of an export; `changed` fields are of its groups."""
    described = {
        "frames": {"size": SIZE, "mask_overlays": False},
        "encoder": {"arch": "resnet18", "width_factor": 0.0625, "strides": "v1"},
        "input": {"size": SIZE, "mean": 0.2, "std": 0.2},
    }
    for group, fields in changed.items():
        described[group] |= fields
    (folder / "preprocessing.json").write_text(json.dumps(described))
    return folder


def write_function(folder, function):
    """Write `encoder.jax` with this function of frames."""
    frames = jax.ShapeDtypeStruct((2, SIZE, SIZE), jnp.uint8)
    exported = export.export(jax.jit(function), platforms=("cpu",))(frames)
    (folder / "encoder.jax").write_bytes(exported.serialize())


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        pytest.param(SIZE, "v1", marks=pytest.mark.slow),
        pytest.param(2 * SIZE, "v1.5", marks=pytest.mark.slow),
        (SIZE + 3, "v1.5"),
    ],
)
def test_an_export_of_this_package_is_read(tmp_path, size, strides):
    model = make_resnet("resnet18", width_factor=0.0625, strides=strides)
    frame = jnp.zeros((1, SIZE, SIZE, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), frame, train=False))()
    write_jax(tmp_path / "encoder.jax", model, variables, Preprocessing(size, SIZE, 0.2, 0.2))
    frozen = read_export(folder_of(tmp_path, frames={"size": size}))
    assert frozen.encode({}, jnp.zeros((3, size, size), jnp.uint8)).shape == (3, 32)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.linalg.qr(x.astype(jnp.float32))[0], "a custom call of '.*qr.*'"),
        (lambda x: jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, x[0, 0, 0]), "the operation stablehlo.while"),
        (lambda x: jnp.sort(x, axis=0), "the operation stablehlo.sort"),
        (jax.lax.composite(lambda x: x + x, name="stranger.twice"), "the composite operation 'stranger.twice'"),
        (jax.lax.composite(lambda x: jnp.sort(x, axis=0), name="chlo.erf"), "the operation stablehlo.sort"),
    ],
)
def test_a_function_with_anything_else_is_refused_before_it_runs(tmp_path, function, message):
    write_function(tmp_path, function)
    with pytest.raises(InputError, match=f"encoder.jax has {message}, which .* nothing of it was run"):
        read_export(folder_of(tmp_path))


@pytest.mark.parametrize("function", [jax.lax.erf, jax.lax.erfc, jax.nn.gelu])
def test_what_a_gelu_consists_of_is_read(tmp_path, function):
    write_function(tmp_path, lambda x: function(x.astype(jnp.float32) / 255))
    frames = np.arange(2 * SIZE * SIZE, dtype=np.uint8).reshape(2, SIZE, SIZE)
    found = read_export(folder_of(tmp_path)).encode({}, frames)
    np.testing.assert_allclose(found, function(frames.astype(np.float32) / 255), rtol=1e-6)


@pytest.mark.parametrize(
    ("written_by", "message"),
    [
        (jax.__version__, "encoder.jax is damaged. Export again."),
        ("0.4.38", "encoder.jax is damaged. Export again."),
        ("1000.0", f"encoder.jax was written by JAX 1000.0, and this is JAX {jax.__version__}. Install that version"),
        (None, f"encoder.jax is damaged, or was written by a JAX newer than this one \\({jax.__version__}\\)"),
    ],
)
def test_a_function_that_cannot_be_read_names_the_versions(tmp_path, written_by, message):
    write_function(tmp_path, lambda frames: frames)
    content = (tmp_path / "encoder.jax").read_bytes()
    (tmp_path / "encoder.jax").write_bytes(content[: len(content) // 2])
    described = json.loads((folder_of(tmp_path) / "preprocessing.json").read_text())
    (tmp_path / "preprocessing.json").write_text(json.dumps(described | ({"jax": written_by} if written_by else {})))
    with pytest.raises(InputError, match=message):
        read_export(tmp_path)


def test_calls_are_counted_as_if_written_out():
    # main: 1 + 2 f = 1 + 2 (3 + g) = 1 + 2 (3 + 5) = 17; f 8; g 5.
    assert _written_out({"main": (1, ["f", "f"]), "f": (3, ["g"]), "g": (5, [])}) == 17 + 8 + 5
    doubling = {str(level): (1, [str(level + 1)] * 2) for level in range(30)} | {"30": (1, [])}
    assert _written_out(doubling) > 2**30
    assert _written_out({"main": (1, ["main"])}) == float("inf")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"frames": {"size": 10**6}}, "size of the frames .* must be from 1 to 4096; got 1000000"),
        ({"frames": {"size": 0}}, "size of the frames"),
        ({"input": {"size": 10**9}}, "size of the input .* must be from 1 to 4096; got 1000000000"),
        ({"encoder": {"width_factor": 1e9}}, "width_factor .* at most"),
        ({"encoder": {"width_factor": float("nan")}}, "width_factor"),
        ({"frames": {"size": "a"}}, "not a file of awcl_jax.export"),
    ],
)
def test_sizes_are_limited_before_anything_is_allocated(tmp_path, changed, message):
    write_function(tmp_path, lambda frames: frames)
    with pytest.raises(InputError, match=message):
        read_export(folder_of(tmp_path, **changed))


def test_a_text_is_no_truth_value(tmp_path):
    described = {
        "frames": {"size": 8, "mask_overlays": "false"},
        "encoder": {"arch": "resnet18", "width_factor": 0.25, "strides": "v1.5"},
        "input": {"size": 8, "mean": 0.2, "std": 0.2},
    }
    (tmp_path / "preprocessing.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"preprocessing\.json is not a file of awcl_jax\.export"):
        read_description(tmp_path)
