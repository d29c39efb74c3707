"""Files of other libraries against these libraries: the same features of a grey frame copied into three channels."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from awcl_jax.models.vit import ViT, ViTOptions
from awcl_jax.models.vit_weights import HALF, OPENAI, load_torch_vit, vit_to_torch
from awcl_jax.models.weights import IMAGENET

pytestmark = [pytest.mark.slow, pytest.mark.peers]
torch = pytest.importorskip("torch")
from tests.helpers import torch_vits  # noqa: E402 (needs torch)

MEAN, STD = 0.17, 0.18  # ours, of no library

PEERS = {
    "timm": torch_vits.timm_vit,
    "timm, CLIP": lambda: torch_vits.timm_vit(pre_norm=True),
    "timm, layer scale and registers": lambda: torch_vits.timm_vit(init_values=0.1, reg_tokens=4, no_embed_class=True),
    "timm, positions of registers": lambda: torch_vits.timm_vit(reg_tokens=3),
    "timm, mean": lambda: torch_vits.timm_vit(global_pool="avg"),
    "timm, distilled DeiT": torch_vits.distilled_deit,
    "torchvision": torch_vits.torchvision_vit,
    "open_clip": torch_vits.open_clip_vit,
    "open_clip, QuickGELU": lambda: torch_vits.open_clip_vit(quick=True),
    "DINOv2": torch_vits.dinov2,
    "DINOv2, registers": lambda: torch_vits.dinov2(registers=4),
    "ViTModel": lambda: torch_vits.transformers_vit("ViTModel"),
    "Dinov2Model": lambda: torch_vits.transformers_vit("Dinov2Model"),
    "Dinov2WithRegistersModel": lambda: torch_vits.transformers_vit("Dinov2WithRegistersModel"),
    "CLIPModel": torch_vits.transformers_clip,
    "timm, DINOv3": torch_vits.timm_dinov3,
    "timm, DINOv3 without biases": lambda: torch_vits.timm_dinov3(biased=False),
    "DINOv3ViTModel": torch_vits.transformers_dinov3,
    "DINOv3": torch_vits.facebooks_dinov3,
}


def grey_frames(edge):
    return np.random.default_rng(0).uniform(size=(3, edge, edge)).astype(np.float32)


def copied(grey, trained):
    """The frames in three channels, each normalised as the network was trained."""
    channels = [(grey - mean) / std for mean, std in zip(trained.mean, trained.std, strict=True)]
    return torch.tensor(np.stack(channels, axis=1).astype(np.float32))


def our_features(path, peer, grey, trained=None):
    options = ViTOptions(patch=torch_vits.PATCH, **peer.options)
    model = ViT(torch_vits.DEPTH, torch_vits.HEADS, (grey.shape[-1] // torch_vits.PATCH,) * 2, options)
    loaded = load_torch_vit(path, model, mean=MEAN, std=STD, trained=trained)
    encode = jax.jit(lambda x: model.apply(loaded.variables, x, train=False))
    return np.asarray(encode(((grey - MEAN) / STD)[..., None].astype(np.float32))), loaded, model


def expected_features(peer, grey, trained=IMAGENET):
    with torch.no_grad():
        return peer.features(copied(grey, trained)).numpy()


def assert_same_features(found, expected):
    apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert apart.max() < 1e-4


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("edge", [torch_vits.TABLE, 3, 7])
@pytest.mark.parametrize("name", PEERS)
def test_features_are_those_of_the_library(name, edge, tmp_path):
    peer = PEERS[name]()
    path = tmp_path / "w.pth"
    torch.save({"model": peer.network.state_dict()}, path)
    trained = OPENAI if "CLIP" in name or "open_clip" in name else IMAGENET
    grey = grey_frames(edge * torch_vits.PATCH)
    found, _, _ = our_features(path, peer, grey)
    assert_same_features(found, expected_features(peer, grey, trained))


def test_another_normalisation_is_folded_as_well(tmp_path):
    peer = torch_vits.timm_vit()
    torch.save(peer.network.state_dict(), tmp_path / "w.pth")
    grey = grey_frames(torch_vits.TABLE * torch_vits.PATCH)
    found, _, _ = our_features(tmp_path / "w.pth", peer, grey, HALF)
    assert_same_features(found, expected_features(peer, grey, HALF))


OLD_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"(layer\.\d+\.attention)\.([qkv])_proj", r"\1.attention.\2"),
    (r"attention\.q\b", "attention.query"),
    (r"attention\.k\b", "attention.key"),
    (r"attention\.v\b", "attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
)
ONLY_VIT = ((r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense"))


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model"])
def test_transformers_names_of_its_version_4(kind, tmp_path):
    peer = torch_vits.transformers_vit(kind)
    old = {}
    for name, value in peer.network.state_dict().items():
        for pattern, becomes in OLD_NAMES + (ONLY_VIT if kind == "ViTModel" else ()):
            name = re.sub(pattern, becomes, name)
        old[name] = value.numpy()
    assert any("attention.attention.query" in name for name in old)
    save_file(old, tmp_path / "w.safetensors")
    grey = grey_frames(48)
    found, _, _ = our_features(tmp_path / "w.safetensors", peer, grey)
    assert_same_features(found, expected_features(peer, grey, IMAGENET))


@pytest.mark.parametrize("kind", ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"])
def test_what_transformers_saves_is_read(kind, tmp_path):
    peer = torch_vits.transformers_vit(kind)
    peer.network.save_pretrained(tmp_path)
    grey = grey_frames(48)
    found, _, _ = our_features(tmp_path / "model.safetensors", peer, grey)
    assert_same_features(found, expected_features(peer, grey, IMAGENET))


TIMM = {
    "plain": {},
    "CLIP": {"pre_norm": True},
    "DINOv2 with registers": {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
    "mean": {"global_pool": "avg"},
}


@pytest.mark.parametrize("kind", TIMM)
def test_what_we_write_is_loaded_strictly_by_timm(kind, tmp_path):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    peer = torch_vits.timm_vit(**TIMM[kind])
    torch.save(peer.network.state_dict(), tmp_path / "w.pth")
    grey = grey_frames(48)
    found, loaded, model = our_features(tmp_path / "w.pth", peer, grey)
    changes = dict(TIMM[kind])
    if peer.options["pre_norm"]:
        changes["norm_layer"] = functools.partial(torch.nn.LayerNorm, eps=1e-5)
    network = vision_transformer.VisionTransformer(
        img_size=48,
        in_chans=1,
        patch_size=torch_vits.PATCH,
        embed_dim=torch_vits.WIDTH,
        depth=torch_vits.DEPTH,
        num_heads=torch_vits.HEADS,
        num_classes=0,
        **changes,
    )
    arrays = vit_to_torch(loaded.variables, model)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)
    with torch.no_grad():
        expected = network.eval()(torch.tensor(((grey - MEAN) / STD).astype(np.float32))[:, None])
    assert_same_features(found, expected.numpy())


def test_facebooks_names_are_those_that_timm_reads():
    filter_weights = pytest.importorskip("timm.models.eva").checkpoint_filter_fn
    peer = torch_vits.facebooks_dinov3()
    network = torch_vits.timm_eva()
    network.load_state_dict(filter_weights(peer.network.state_dict(), network), strict=True)
    expected = peer.network.network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_what_transformers_saves_of_a_dinov3_is_read(tmp_path):
    peer = torch_vits.transformers_dinov3()
    peer.network.save_pretrained(tmp_path)
    grey = grey_frames(48)
    found, _, _ = our_features(tmp_path / "model.safetensors", peer, grey)
    assert_same_features(found, expected_features(peer, grey, IMAGENET))


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_dinov3_that_we_write_is_loaded_strictly_by_timm(pool, tmp_path):
    peer = torch_vits.timm_dinov3()
    peer = dataclasses.replace(peer, options=peer.options | {"pool": {"token": "token", "avg": "mean"}[pool]})
    torch.save(peer.network.state_dict(), tmp_path / "w.pth")
    grey = grey_frames(48)
    found, loaded, model = our_features(tmp_path / "w.pth", peer, grey)
    network = torch_vits.timm_eva(in_chans=1, global_pool=pool)
    arrays = vit_to_torch(loaded.variables, model)
    network.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()}, strict=True)
    with torch.no_grad():
        expected = network.eval()(torch.tensor(((grey - MEAN) / STD).astype(np.float32))[:, None])
    assert_same_features(found, expected.numpy())
