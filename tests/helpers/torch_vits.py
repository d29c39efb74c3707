"""Small vision transformers of several libraries with random weights: oracles of what their files mean."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


@dataclasses.dataclass(frozen=True)
class Peer:
    """A network of a library.

    Attributes:
      network: its module.
      features: picture [b, 3, h, w] -> features [b, f], positions resampled as the library does.
      options: of our network, as keywords of `ViTOptions`.
      table: edge of its table of positions.
    """

    network: Any
    features: Callable[[Any], Any]
    options: dict[str, Any]
    table: int


DEPTH, HEADS, PATCH, TABLE = 2, 2, 16, 4
WIDTH = 64 * HEADS
OF_TRANSFORMERS = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "image_size": PATCH * TABLE,
    "patch_size": PATCH,
}
"""The same sizes as transformers' configurations name them."""


def randomise(network: Any, seed: int = 0) -> Any:
    """Draw every parameter, also those that begin as zeros or ones, so that each can be missed."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if any(part in name for part in ("token", "pos", "class_embedding")):
            new = drawn / 2
        elif value.ndim > 1:
            new = drawn / math.sqrt(value[0].numel())
        elif name.endswith(("bias",)):
            new = drawn / 5
        else:
            new = 1 + drawn.clamp(-2, 2) / 5
        value.data.copy_(new)
    return network.eval().requires_grad_(requires_grad=False)


def timm_vit(**changes: Any) -> Peer:
    """Timm's VisionTransformer, whose table is resampled as `timm.create_model(img_size=...)` does it."""
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")
    ours = {
        "registers": changes.get("reg_tokens", 0),
        "layer_scale": "init_values" in changes,
        "pre_norm": changes.get("pre_norm", False),
        "norm_after": changes.get("global_pool") == "avg",
        "pool": "mean" if changes.get("global_pool") == "avg" else "token",
    }
    if changes.get("pre_norm"):
        changes["norm_layer"] = functools.partial(nn.LayerNorm, eps=1e-5)
        ours["epsilon"] = 1e-5

    def made(edge: int) -> Any:
        return vision_transformer.VisionTransformer(
            img_size=PATCH * edge,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
            num_classes=0,
            **changes,
        )

    network = randomise(made(TABLE))

    def features(x: Any) -> Any:
        other = made(x.shape[-1] // PATCH)
        filtered = vision_transformer.checkpoint_filter_fn(dict(network.state_dict()), other)
        other.load_state_dict(filtered)
        return other.eval()(x)

    return Peer(network, features, ours, TABLE)


def distilled_deit() -> Peer:
    """Timm's VisionTransformerDistilled: its class token, which timm averages with the second one, a register here."""
    deit = pytest.importorskip("timm.models.deit")
    filter_weights = pytest.importorskip("timm.models.vision_transformer").checkpoint_filter_fn

    def made(edge: int) -> Any:
        return deit.VisionTransformerDistilled(
            img_size=PATCH * edge,
            patch_size=PATCH,
            embed_dim=WIDTH,
            depth=DEPTH,
            num_heads=HEADS,
        )

    network = randomise(made(TABLE))

    def features(x: Any) -> Any:
        other = made(x.shape[-1] // PATCH)
        other.load_state_dict(filter_weights(dict(network.state_dict()), other))
        return other.eval().forward_features(x)[:, 0]

    return Peer(network, features, {"registers": 1}, TABLE)


def torchvision_vit() -> Peer:
    """Torchvision's VisionTransformer, with its `interpolate_embeddings`."""
    vision_transformer = pytest.importorskip("torchvision.models.vision_transformer")

    def made(edge: int) -> Any:
        return vision_transformer.VisionTransformer(PATCH * edge, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH)

    network = randomise(made(TABLE))

    def features(x: Any) -> Any:
        other = made(x.shape[-1] // PATCH)
        state = vision_transformer.interpolate_embeddings(x.shape[-1], PATCH, dict(network.state_dict()))
        other.load_state_dict(state)
        other.heads = nn.Identity()
        return other.eval()(x)

    return Peer(network, features, {}, TABLE)


def open_clip_vit(*, quick: bool = False) -> Peer:
    """open_clip's CLIP, the visual tower before its projection."""
    model = pytest.importorskip("open_clip.model")

    def made(edge: int) -> Any:
        vision = model.CLIPVisionCfg(
            layers=DEPTH, width=WIDTH, head_width=64, patch_size=PATCH, image_size=PATCH * edge
        )
        text = model.CLIPTextCfg(layers=1, width=64, heads=1, vocab_size=10, context_length=5)
        return model.CLIP(32, vision, text, quick_gelu=quick)

    network = randomise(made(TABLE))

    def features(x: Any) -> Any:
        other, state = made(x.shape[-1] // PATCH), dict(network.state_dict())
        model.resize_pos_embed(state, other)
        other.load_state_dict(state)
        other.visual.proj = None
        return other.eval().visual(x)

    return Peer(
        network, features, {"pre_norm": True, "epsilon": 1e-5, "activation": "quick_gelu" if quick else "gelu"}, TABLE
    )


def transformers_vit(kind: str) -> Peer:
    """ViTModel, Dinov2Model or Dinov2WithRegistersModel of transformers."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind.replace("Model", "Config"))(**OF_TRANSFORMERS)
    network = randomise(getattr(transformers, kind)(config))
    more = {"interpolate_pos_encoding": True} if kind == "ViTModel" else {}
    options: dict[str, Any] = {"epsilon": 1e-12} if kind == "ViTModel" else {"layer_scale": True}
    if "Registers" in kind:
        options["registers"] = 4
    return Peer(network, lambda x: network(x, **more).last_hidden_state[:, 0], options, TABLE)


DINOV3 = {"rotary": True, "registers": 4, "layer_scale": True, "epsilon": 1e-5}


def timm_eva(**changes: Any) -> Any:
    """Timm's Eva with the arguments of its `vit_small_patch16_dinov3_qkvb`, but small and for any size."""
    eva = pytest.importorskip("timm.models.eva")
    arguments = {
        "patch_size": PATCH,
        "dynamic_img_size": True,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": 0,
        "init_values": 1e-5,
        "rope_type": "dinov3",
        "rope_temperature": 100,
        "rope_rotate_half": True,
        "use_rot_pos_emb": True,
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "use_fc_norm": False,
        "global_pool": "token",
        "norm_layer": functools.partial(nn.LayerNorm, eps=1e-5),
    }
    return eva.Eva(**arguments | changes)


def timm_dinov3(*, biased: bool = True) -> Peer:
    """DINOv3 of timm, whose queries and values have a bias in its variants `qkvb`."""
    network = randomise(timm_eva(qkv_bias=biased))
    return Peer(network, network, DINOV3, TABLE)


def transformers_dinov3() -> Peer:
    """DINOv3ViTModel of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(**OF_TRANSFORMERS, num_register_tokens=4)
    network = randomise(transformers.DINOv3ViTModel(config))
    return Peer(network, lambda x: network(x).pooler_output, DINOV3, TABLE)


class FacebooksNames:
    """A DINOv3 of timm by the names of Facebook's code, which is not on PyPI; timm reads these files itself."""

    def __init__(self, network: Any) -> None:
        """Take timm's network."""
        self.network = network

    def state_dict(self) -> dict[str, Any]:
        """Return its tensors with a bias of keys, which the mask takes away, and what the files have besides."""
        state = {
            "mask_token": torch.full((1, WIDTH), 5.0),
            "rope_embed.periods": self.network.rope.periods.bfloat16().float(),
        }
        for name, value in self.network.state_dict().items():
            block, _, part = name.rpartition(".")
            if part == "q_bias":
                values = self.network.get_parameter(f"{block}.v_bias")
                state[f"{block}.qkv.bias"] = torch.cat([value, torch.full((WIDTH,), 3.0), values])
                state[f"{block}.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(WIDTH)
            elif part in ("gamma_1", "gamma_2"):
                state[f"{block}.ls{part[-1]}.gamma"] = value
            elif part != "v_bias":
                state["storage_tokens" if name == "reg_token" else name] = value
        return state


def facebooks_dinov3() -> Peer:
    """DINOv3 by the names of Facebook's code."""
    network = timm_dinov3().network
    return Peer(FacebooksNames(network), network, DINOV3, TABLE)


def transformers_clip() -> Peer:
    """CLIPModel of transformers, its picture tower before the projection, with CLIP's own QuickGELU."""
    transformers = pytest.importorskip("transformers")
    text = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    network = randomise(
        transformers.CLIPModel(transformers.CLIPConfig(vision_config=dict(OF_TRANSFORMERS), text_config=text))
    )
    return Peer(
        network,
        lambda x: network.vision_model(x, interpolate_pos_encoding=True).pooler_output,
        {"pre_norm": True, "epsilon": 1e-5, "activation": "quick_gelu"},
        TABLE,
    )


class DinoV2(nn.Module):
    """Facebook's DINOv2, from its paper and its names; its own package is not on PyPI."""

    def __init__(self, *, registers: int = 0) -> None:
        """Make a network of the size of the others."""
        super().__init__()
        self.registers = registers
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE**2, WIDTH))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, WIDTH))
        self.blocks = nn.ModuleList([DinoV2Block() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, x: Any) -> Any:
        """Return the class token."""
        edge = x.shape[-1] // PATCH
        x = self.patch_embed.proj(x).flatten(2).transpose(1, 2)
        table = self.pos_embed[:, 1:].reshape(1, TABLE, TABLE, WIDTH).permute(0, 3, 1, 2)
        if edge != TABLE:
            # The published code: an offset of 0.1 without registers, an antialiased kernel with them.
            how = (
                {"size": (edge, edge), "antialias": True}
                if self.registers
                else {"scale_factor": ((edge + 0.1) / TABLE,) * 2}
            )
            table = nn.functional.interpolate(table, mode="bicubic", **how)
        assert table.shape[-1] == edge
        x = x + table.permute(0, 2, 3, 1).reshape(1, -1, WIDTH)
        tokens = [(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)]
        if self.registers:
            tokens.append(self.register_tokens.expand(len(x), -1, -1))
        x = torch.cat([*tokens, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class DinoV2Block(nn.Module):
    """A block with layer scale."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn, self.mlp, self.ls1, self.ls2 = (nn.Module() for _ in range(4))
        self.attn.qkv, self.attn.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        for scale in (self.ls1, self.ls2):
            scale.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Any) -> Any:
        """Return the new tokens."""
        b, t, _ = x.shape
        q, k, v = self.attn.qkv(self.norm1(x)).reshape(b, t, 3, HEADS, 64).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(64)).softmax(-1)
        x = x + self.ls1.gamma * self.attn.proj((weights @ v).transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.ls2.gamma * self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x))))


def dinov2(*, registers: int = 0) -> Peer:
    """DINOv2 with its names."""
    network = randomise(DinoV2(registers=registers))
    return Peer(network, network, {"layer_scale": True, "registers": registers}, TABLE)
