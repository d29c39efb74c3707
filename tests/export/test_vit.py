"""An exported vision transformer has, in every format, the features of the run."""

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
from awcl_jax.models import vit
from awcl_jax.models.shapes import variable_shapes
from awcl_jax.models.vit import ViTOptions, make_vit
from awcl_jax.runtime.errors import InputError

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
KINDS = {
    "plain": {},
    "registers, both": {"registers": 2, "layer_scale": True, "pool": "both", "activation": "gelu_tanh"},
    "as CLIP": {"pre_norm": True, "epsilon": 1e-5, "activation": "quick_gelu", "patch": 8},
    "mean": {"pool": "mean", "norm_after": True},
    "as DINOv3": {"rotary": True, "registers": 4, "layer_scale": True, "epsilon": 1e-5},
    "rotary, mean": {"rotary": True, "pool": "mean", "activation": "gelu"},
    "rotary, norm after": {"rotary": True, "pool": "token", "norm_after": True, "registers": 1, "layer_scale": True},
}


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Two blocks: the depth changes nothing but the time."""
    monkeypatch.setitem(vit.SIZES, "vit_tiny", (2, 3))


def exported(folder, options, *, channels=1, formats=("safetensors", "onnx", "jax")):
    """Write a random encoder of one head; return its entry, frames and their features."""
    model = make_vit("vit_tiny", size=32, options=options, width_factor=0.34)
    shapes = variable_shapes(model, 32, 1)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), dict(shapes))
    encoder = encoder_files.write(
        folder,
        variables,
        arch="vit_tiny",
        width_factor=0.34,
        strides="v1.5",
        preprocessing=Preprocessing(48, 32, mean=0.3, std=0.2),
        formats=formats,
        channels=channels,
        vit=options,
    )
    images = rng.integers(0, 256, (2, 48, 48), np.uint8)
    view = centre_view(images, options=Augmentation(size=32, mean=0.3, std=0.2))
    return encoder, images, np.asarray(jax.jit(lambda x: model.apply(variables, x, train=False))(view))


@pytest.mark.parametrize(
    "kind", ["registers, both", "as DINOv3", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS)]
)
def test_every_format_has_the_features_of_the_encoder(kind, tmp_path):
    encoder, images, expected = exported(tmp_path, ViTOptions(**KINDS[kind]))
    assert expected.shape == (2, encoder["features"])
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
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_code_for_pytorch_has_the_features_of_the_encoder(kind, channels, tmp_path):
    torch = pytest.importorskip("torch")
    _, images, expected = exported(tmp_path, ViTOptions(**KINDS[kind]), channels=channels, formats=("safetensors",))
    spec = importlib.util.spec_from_file_location("encoder_torch", tmp_path / "encoder_torch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        found = module.load()(torch.tensor(images)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)
    np.testing.assert_allclose(load_encoder(tmp_path)(images), expected, **CLOSE)


def card_of(encoder):
    """The encoder's part of a model card, without that of a run."""
    values = {**encoder, "size": 48, "inner": 32, "mean": 0.3, "std": 0.2}
    return model_card._of_vit(values)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "as CLIP", "mean", *(kind for kind in KINDS if KINDS[kind].get("rotary"))])
def test_the_cards_code_loads_the_weights_into_timm(kind, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    encoder, images, expected = exported(tmp_path, ViTOptions(**KINDS[kind]), formats=("safetensors",))
    (code,) = re.findall(r"```python\n(.*?)```", card_of(encoder)["elsewhere"], re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    view = centre_view(images, options=Augmentation(size=32, mean=0.3, std=0.2))
    with torch.no_grad():
        found = names["network"](torch.tensor(np.asarray(view)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ({}, "VisionTransformer("),
        ({"rotary": True, "pool": "mean"}, "Eva("),
        ({"rotary": True, "pool": "both"}, ""),
        ({"rotary": True, "activation": "quick_gelu"}, ""),  # of timm's Eva it is gelu
    ],
)
def test_the_card_offers_timms_network_of_the_kind(options, offered, tmp_path):
    encoder, _, _ = exported(tmp_path, ViTOptions(**options), formats=("safetensors",))
    said = card_of(encoder)["elsewhere"]
    assert offered in said
    assert bool(said) == bool(offered)


def test_the_card_offers_timm_only_what_it_has(tmp_path):
    encoder, _, _ = exported(tmp_path, ViTOptions(pool="both"), formats=("safetensors",))
    said = card_of(encoder)
    assert said["elsewhere"] == ""
    assert said["title"] == "ViT-T/16"
    assert said["pooled"] == "the class token and the mean of the patches"


def test_the_encoder_is_described(tmp_path):
    encoder, _, _ = exported(tmp_path, ViTOptions(registers=2), formats=("safetensors",))
    assert json.loads((tmp_path / "preprocessing.json").read_text())["encoder"] == encoder
    # A token has 64 features. Patches 256 * 64 + 64, positions 4 * 64, tokens 3 * 64; a block 4 * 64 * 64 + 4 * 64 of
    # attention, 8 * 64 * 64 + 5 * 64 of the perceptron and 4 * 64 of normalisation; and the last normalisation.
    block = 4 * 64 * 64 + 4 * 64 + 8 * 64 * 64 + 5 * 64 + 4 * 64
    assert encoder["parameters"] == 256 * 64 + 64 + 4 * 64 + 3 * 64 + 2 * block + 2 * 64
    assert (encoder["depth"], encoder["heads"], encoder["features"], encoder["vit"]["registers"]) == (2, 1, 64, 2)


def configured(folder, **fields):
    """A configuration that starts from an export."""
    config = default_config()
    config.model.arch, config.model.width_factor, config.model.init = "vit_tiny", 0.34, str(folder)
    config.augment.size, config.augment.mean, config.augment.std = 32, 0.3, 0.2
    config.update_from_flattened_dict(fields)
    return config


def test_a_run_starts_from_an_export_and_from_its_file_at_any_size(tmp_path):
    exported(tmp_path, ViTOptions(registers=2, layer_scale=True), formats=("safetensors",))
    fields = {"model.vit.registers": 2, "model.vit.layer_scale": True}
    of_folder, of_file = (
        initial_variables(configured(path, **fields)).variables["params"]["encoder"]
        for path in (tmp_path, tmp_path / "encoder.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, of_folder, of_file)
    assert of_folder["pos_embed"].shape == (2, 2, 64)
    larger = {**fields, "augment.size": 64}
    of_folder, of_file = (
        initial_variables(configured(path, **larger)).variables["params"]["encoder"]
        for path in (tmp_path, tmp_path / "encoder.safetensors")
    )
    assert of_folder["pos_embed"].shape == (4, 4, 64)
    jax.tree.map(np.testing.assert_array_equal, of_folder, of_file)
    with pytest.raises(
        InputError, match=r"Add --config\.model\.vit\.registers=2 --config\.model\.vit\.layer_scale=True"
    ):
        initial_variables(configured(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch": 5}, "patch must be one of 8, 14, 16; got 5 in .*preprocessing.json"),
        ({"patch": "x"}, "patch must be one of 8, 14, 16; got 'x' in|is not a file of awcl_jax.export"),
        ({"registers": 10**9}, "registers must be from 0 to 64; got 1000000000 in"),
        ({"registers": "many"}, "is not a file of awcl_jax.export"),
        ({"unknown": 1}, "is not a file of awcl_jax.export"),
    ],
)
def test_options_of_a_strangers_export_are_limited(changes, said, tmp_path):
    exported(tmp_path, ViTOptions(), formats=("safetensors",))
    described = json.loads((tmp_path / "preprocessing.json").read_text())
    described["encoder"]["vit"] |= changes
    (tmp_path / "preprocessing.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=said):
        load_encoder(tmp_path)


def test_a_run_starts_from_an_export_with_rotary_positions_at_any_size(tmp_path):
    exported(tmp_path, ViTOptions(registers=2, rotary=True), formats=("safetensors",))
    fields = {"model.vit.registers": 2, "model.vit.rotary": True, "augment.size": 64}
    of_folder, of_file = (
        initial_variables(configured(path, **fields)).variables["params"]["encoder"]
        for path in (tmp_path, tmp_path / "encoder.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, of_folder, of_file)
    assert "pos_embed" not in of_folder
    with pytest.raises(InputError, match=r"Add --config\.model\.vit\.registers=2 --config\.model\.vit\.rotary=True"):
        initial_variables(configured(tmp_path))
