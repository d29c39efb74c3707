"""An exported ConvNeXt has, in every format, the features of the run."""

import importlib.util
import json
import re

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from awcl_jax.augment.options import Augmentation
from awcl_jax.augment.views import centre_view
from awcl_jax.config.initial import initial_variables
from awcl_jax.config.pretraining import default_config
from awcl_jax.embed.command import load_encoder
from awcl_jax.export import encoder_files, model_card
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models import convnext
from awcl_jax.models.convnext import make_convnext
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.runtime.errors import InputError

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
FACTOR = 0.0417  # four features
ARCHS = ("convnext_tiny", "convnextv2_tiny")


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Few blocks: the depth changes nothing but the time."""
    for arch in ARCHS:
        monkeypatch.setitem(convnext.STAGES, arch, (1, 1, 2, 1))


def exported(folder, arch="convnext_tiny", *, channels=1, formats=("safetensors", "onnx", "jax")):
    """Write a random encoder of four features; return its entry, frames and their features."""
    model = make_convnext(arch, size=40, width_factor=FACTOR)
    shapes = variable_shapes(model, 40, 1)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), dict(shapes))
    encoder = encoder_files.write(
        folder,
        variables,
        arch=arch,
        width_factor=FACTOR,
        strides="v1.5",
        preprocessing=Preprocessing(48, 40, mean=0.3, std=0.2),
        formats=formats,
        channels=channels,
    )
    images = rng.integers(0, 256, (2, 48, 48), np.uint8)
    view = centre_view(images, options=Augmentation(size=40, mean=0.3, std=0.2))
    return encoder, images, np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(view))


@pytest.mark.parametrize("arch", [ARCHS[0], pytest.param(ARCHS[1], marks=pytest.mark.slow)])
def test_every_format_has_the_features_of_the_encoder(arch, tmp_path):
    encoder, images, expected = exported(tmp_path, arch)
    assert expected.shape == (2, encoder["features"]) == (2, 32)
    assert encoder["stages"] == [1, 1, 2, 1]
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx")
    for count in (1, 2):
        (found,) = session.run(None, {"frames": images[:count]})
        np.testing.assert_allclose(found, expected[:count], **CLOSE)
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    assert {array.name for array in graph.initializer} <= {name for node in graph.node for name in node.input}
    np.testing.assert_allclose(load_encoder(tmp_path)(images), expected, **CLOSE)
    (tmp_path / "encoder.safetensors").unlink()
    np.testing.assert_allclose(load_encoder(tmp_path)(images), expected, **CLOSE)  # of encoder.jax


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(("arch", "channels"), [(ARCHS[0], 1), (ARCHS[0], 3), (ARCHS[1], 1)])
def test_the_code_for_pytorch_has_the_features_of_the_encoder(arch, channels, tmp_path):
    torch = pytest.importorskip("torch")
    _, images, expected = exported(tmp_path, arch, channels=channels, formats=("safetensors",))
    spec = importlib.util.spec_from_file_location("encoder_torch", tmp_path / "encoder_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        found = module.load()(torch.tensor(images)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(load_encoder(tmp_path)(images), expected, **CLOSE)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_the_cards_code_loads_the_weights_into_timm(arch, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    encoder, images, expected = exported(tmp_path, arch, formats=("safetensors",))
    card = model_card._of_convnext({**encoder, "size": 48, "inner": 40, "mean": 0.3, "std": 0.2})
    assert card["title"] == ("ConvNeXt V2-T" if "v2" in arch else "ConvNeXt-T")
    (code,) = re.findall(r"```python\n(.*?)```", card["elsewhere"], re.DOTALL)
    code = code.replace("num_classes=0,", "num_classes=0, depths=(1, 1, 2, 1),")  # as shallow as ours
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    view = centre_view(images, options=Augmentation(size=40, mean=0.3, std=0.2))
    with torch.no_grad():
        found = names["network"](torch.tensor(np.asarray(view)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


def configured(folder, **fields):
    """A configuration that starts from an export."""
    config = default_config()
    config.model.arch, config.model.width_factor, config.model.init = "convnext_tiny", FACTOR, str(folder)
    config.augment.size, config.augment.mean, config.augment.std = 64, 0.3, 0.2
    config.update_from_flattened_dict(fields)
    return config


def test_a_run_starts_from_an_export_and_from_its_file_at_any_size(tmp_path):
    exported(tmp_path, formats=("safetensors",))
    of_folder, of_file = (
        initial_variables(configured(path)).variables["params"]["encoder"]
        for path in (tmp_path, tmp_path / "encoder.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, of_folder, of_file)
    with pytest.raises(InputError, match=r"arch convnext_tiny and not convnextv2_tiny.* Add --config\.model\.arch="):
        initial_variables(configured(tmp_path, **{"model.arch": "convnextv2_tiny"}))


def test_a_size_in_a_strangers_export_is_limited(tmp_path):
    exported(tmp_path, formats=("safetensors",))
    described = json.loads((tmp_path / "preprocessing.json").read_text())
    described["input"]["size"] = 20
    (tmp_path / "preprocessing.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match="frames must be at least 32 pixels; got 20"):
        load_encoder(tmp_path)
