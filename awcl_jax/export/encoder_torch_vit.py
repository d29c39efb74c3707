"""The encoder beside this file in PyTorch: `load()` returns a module from grey frames to features.

It needs only torch and safetensors. The parameters have timm's names.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

_ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def load(folder: str | Path = Path(__file__).parent) -> "Encoder":
    """Load the encoder with its weights, ready for inference."""
    made_of = json.loads((Path(folder) / "preprocessing.json").read_text("utf-8"))
    encoder = Encoder(made_of["encoder"], made_of["input"], frame_size=made_of["frames"]["size"])
    encoder.load_state_dict(load_file(Path(folder) / "encoder.safetensors"))
    return encoder.eval()


class Encoder(nn.Module):
    """Frames, uint8 [b, frame_size, frame_size], to features [b, f]; `features` takes preprocessed input."""

    def __init__(self, encoder: dict, view: dict, *, frame_size: int) -> None:
        """Take arguments as in `preprocessing.json`."""
        super().__init__()
        self.channels, self.view, self.frame_size = encoder["channels"], view, frame_size
        self.options = options = encoder["vit"]
        width, patch, registers = encoder["width"], options["patch"], options["registers"]
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(self.channels, width, patch, patch, bias=not options["pre_norm"])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if registers:
            self.reg_token = nn.Parameter(torch.zeros(1, registers, width))
        # Without registers, timm has a position of the class token, too; here it is a row of zeros.
        self.positions_before = 0 if registers else 1
        if not options["rotary"]:
            self.pos_embed = nn.Parameter(torch.zeros(1, (view["size"] // patch) ** 2 + self.positions_before, width))
        self.norm_pre = nn.LayerNorm(width, options["epsilon"]) if options["pre_norm"] else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, encoder["heads"], options) for _ in range(encoder["depth"])))
        self.add_module("fc_norm" if options["norm_after"] else "norm", nn.LayerNorm(width, options["epsilon"]))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the features of grey frames."""
        return self.features(self.preprocess(frames))

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """Turn frames, uint8 [b, frame_size, frame_size], into the network's input [b, channels, size, size]."""
        if frames.dtype != torch.uint8 or frames.shape[1:] != (self.frame_size, self.frame_size):
            raise ValueError(
                f"frames must be uint8 [b, {self.frame_size}, {self.frame_size}]; got {frames.dtype} {frames.shape}"
            )
        x = frames[:, None].float()
        for _ in range(self.view["halvings"]):
            x = torch.floor(nn.functional.avg_pool2d(x, 2) + 0.5)
        last, size = x.shape[-1] - 1, self.view["size"]
        pixels = torch.arange(size, device=x.device) + 0.5
        centres = (pixels / size * self.frame_size / 2 ** self.view["halvings"] - 0.5).clamp(0, last)
        weights = (1 - (centres[:, None] - torch.arange(last + 1, device=x.device)).abs()).clamp(min=0)
        x = (weights @ x @ weights.T / 255 - self.view["mean"]) / self.view["std"]
        return x.expand(-1, self.channels, -1, -1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of normalised input [b, channels, size, size]."""
        patches = self.patch_embed.proj(x)
        x, angles = patches.flatten(2).transpose(1, 2), None
        if self.options["rotary"]:
            angles = _angles(patches, before=1 + self.options["registers"], features=x.shape[2] // self.blocks[0].heads)
        else:
            x = x + self.pos_embed[:, self.positions_before :]
        before = [self.cls_token, *([self.reg_token] if self.options["registers"] else [])]
        x = torch.cat([*(tokens.expand(len(x), -1, -1) for tokens in before), x], 1)
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x, angles)
        if not self.options["norm_after"]:
            x = self.norm(x)
        cls, mean = x[:, 0], x[:, 1 + self.options["registers"] :].mean(1)
        parts = {"token": [cls], "mean": [mean], "both": [cls, mean]}[self.options["pool"]]
        if self.options["norm_after"]:
            parts = [self.fc_norm(part) for part in parts]
        return torch.cat(parts, 1)


class Block(nn.Module):
    """Attention and a perceptron, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, options: dict) -> None:
        """Take the width of a token, the number of heads, and `vit` of `preprocessing.json`."""
        super().__init__()
        self.heads, self.activation, self.options = heads, _ACTIVATIONS[options["activation"]], options
        self.norm1, self.norm2 = (nn.LayerNorm(width, options["epsilon"]) for _ in range(2))
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv = nn.Linear(width, 3 * width, bias=not options["rotary"])
        self.attn.proj = nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if options["rotary"]:  # named as timm's DINOv3
            self.attn.q_bias, self.attn.v_bias = (nn.Parameter(torch.zeros(width)) for _ in range(2))
            if options["layer_scale"]:
                self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(width)) for _ in range(2))
        else:
            self.ls1, self.ls2 = (Scale(width) if options["layer_scale"] else nn.Identity() for _ in range(2))

    def forward(self, x: torch.Tensor, angles: torch.Tensor | None = None) -> torch.Tensor:
        """Map tokens [b, t, width] to new ones; `angles` [t, features of a head / 2] are those of rotary positions."""
        b, t, width = x.shape
        qkv = self.attn.qkv(self.norm1(x))
        if angles is not None:
            qkv = qkv + torch.cat([self.attn.q_bias, torch.zeros_like(self.attn.q_bias), self.attn.v_bias])
        q, k, v = qkv.reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = _turned(q, angles), _turned(k, angles)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self._scaled(1, self.attn.proj(y.transpose(1, 2).reshape(b, t, width)))
        return x + self._scaled(2, self.mlp.fc2(self.activation(self.mlp.fc1(self.norm2(x)))))

    def _scaled(self, half: int, y: torch.Tensor) -> torch.Tensor:
        if not self.options["rotary"]:
            return self.get_submodule(f"ls{half}")(y)
        return y * self.get_parameter(f"gamma_{half}") if self.options["layer_scale"] else y


class Scale(nn.Module):
    """Learned factors of the features."""

    def __init__(self, width: int) -> None:
        """Take the number of factors."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled tokens."""
        return x * self.gamma


def _angles(patches: torch.Tensor, *, before: int, features: int) -> torch.Tensor:
    """Return the angles [t, features / 2] of rotary positions of patches [b, width, rows, columns]; 0 of `before`."""
    down, across = ((torch.arange(n, device=patches.device) + 0.5) / n * 2 - 1 for n in patches.shape[2:])
    places = torch.stack(torch.meshgrid(down, across, indexing="ij"), -1).reshape(-1, 2, 1)
    count = features // 4
    periods = 100 ** (torch.arange(count, device=patches.device) / count)
    return nn.functional.pad((2 * math.pi * places / periods).flatten(1), (0, 0, before, 0))


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn queries or keys [b, heads, t, features]: the first half of the features with the second."""
    u, v = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([u * cos - v * sin, v * cos + u * sin], -1)
