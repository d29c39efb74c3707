"""The encoder beside this file in PyTorch: `load()` returns a module from grey frames to features.

It needs only torch and safetensors. The parameters have torchvision's names; torchvision itself has no ResNet of
another width than 1, and no ResNet-50 with the strides of version 1.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}


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
        width, bottleneck = encoder["width"], encoder["arch"] == "resnet50"
        self.conv1 = nn.Conv2d(self.channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for stage, blocks in enumerate(_BLOCKS[encoder["arch"]]):
            layers, features = [], width * 2**stage
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(Block(inside, features, stride, bottleneck, encoder["strides"]))
                inside = features * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))

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
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x.mean((2, 3))


class Block(nn.Module):
    """A basic block of two convolutions, or a bottleneck of three, with its shortcut."""

    def __init__(self, inside: int, features: int, stride: int, bottleneck: bool, strides: str) -> None:
        """Map `inside` features to `features`, or to four times as many for a bottleneck."""
        super().__init__()
        out = features * (4 if bottleneck else 1)
        # Kernel size and stride of each convolution; "v1" strides in the first, "v1.5" (torchvision) in the 3 x 3.
        shapes = [(3, stride), (3, 1)]
        if bottleneck:
            shapes = [(1, stride), (3, 1), (1, 1)] if strides == "v1" else [(1, 1), (3, stride), (1, 1)]
        self.depth, widths = len(shapes), [inside, *[features] * (len(shapes) - 1), out]
        for i, (size, step) in enumerate(shapes, start=1):
            conv = nn.Conv2d(widths[i - 1], widths[i], size, step, size // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [b, inside, h, w] to [b, out, h / stride, w / stride]."""
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.depth:
                y = y.relu()
        return (y + self.downsample(x)).relu()
