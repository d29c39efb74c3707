"""The encoder beside this file in PyTorch: `load()` returns a module from grey frames to features.

It needs only torch and safetensors. The parameters have timm's names.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

_EPSILON = 1e-6


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
        width, second = encoder["width"], encoder["arch"].startswith("convnextv2_")
        self.stem = nn.Sequential(nn.Conv2d(self.channels, width, 4, 4), Norm(width))
        self.stages = nn.Sequential()
        for stage, blocks in enumerate(encoder["stages"]):
            features, layers = width * 2**stage, nn.Module()
            if stage:
                layers.downsample = nn.Sequential(Norm(features // 2), nn.Conv2d(features // 2, features, 2, 2))
            layers.blocks = nn.Sequential(*(Block(features, second) for _ in range(blocks)))
            self.stages.append(layers)
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(width * 2 ** (len(self.stages) - 1), _EPSILON)

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
        """Return the features of normalised input [b, channels, h, w]."""
        x = self.stem(x)
        for stage, layers in enumerate(self.stages):
            x = layers.blocks(layers.downsample(x) if stage else x)
        return self.head.norm(x.mean((2, 3)))


class Norm(nn.LayerNorm):
    """Layer normalisation of the features of every pixel, which are the second axis."""

    def __init__(self, features: int) -> None:
        """Take the number of features."""
        super().__init__(features, _EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised maps."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution and a perceptron of every pixel, added to the maps."""

    def __init__(self, features: int, second: bool) -> None:
        """Take the number of features, and whether it is of version 2."""
        super().__init__()
        self.conv_dw = nn.Conv2d(features, features, 7, padding=3, groups=features)
        self.norm, self.mlp = nn.LayerNorm(features, _EPSILON), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)
        if second:
            self.mlp.grn = ResponseNorm(4 * features)
        else:
            self.gamma = nn.Parameter(torch.ones(features))
        self.second = second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [b, features, h, w] to new ones."""
        y = nn.functional.gelu(self.mlp.fc1(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))))
        y = self.mlp.fc2(self.mlp.grn(y)) if self.second else self.mlp.fc2(y) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation of maps [b, h, w, features]."""

    def __init__(self, features: int) -> None:
        """Take the number of features."""
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the new maps."""
        response = x.norm(dim=(1, 2), keepdim=True)
        share = response / (response.mean(-1, keepdim=True) + 1e-6)
        return x + self.weight * (x * share) + self.bias
