"""A ResNet in PyTorch under torchvision's names, written from the paper and torchvision's names: an oracle."""

import torch
from torch import nn


class Block(nn.Module):
    """A basic block, or with `bottleneck` one of three convolutions."""

    def __init__(self, inside: int, features: int, stride: int, *, bottleneck: bool, strides: str) -> None:
        """As torchvision's `BasicBlock` and `Bottleneck`."""
        super().__init__()
        first, second = (stride, 1) if strides == "v1" or not bottleneck else (1, stride)
        out = features * (4 if bottleneck else 1)
        if bottleneck:
            convs = [(inside, features, 1, first), (features, features, 3, second), (features, out, 1, 1)]
        else:
            convs = [(inside, features, 3, first), (features, out, 3, 1)]
        self.count = len(convs)
        for i, (a, b, size, step) in enumerate(convs, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, size, step, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, inside, h, w] -> [b, out, h / stride, w / stride]."""
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.count else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class TorchResNet(nn.Module):
    """Frames [b, channels, h, w] to features [b, f]; weights and running statistics are random."""

    def __init__(self, arch: str, *, channels: int = 3, width: int = 64, strides: str = "v1.5", seed: int = 0) -> None:
        """As `torchvision.models.resnet18` and its like, without `fc`."""
        super().__init__()
        blocks = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}[arch]
        bottleneck = arch == "resnet50"
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        for stage, count in enumerate(blocks):
            features, layers = width * 2**stage, []
            for i in range(count):
                stride = 2 if stage and not i else 1
                layers.append(Block(inside, features, stride, bottleneck=bottleneck, strides=strides))
                inside = features * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.uniform_(module.weight, 0.5, 1.0)
                nn.init.normal_(module.bias, 0.0, 0.2)
                nn.init.normal_(module.running_mean, 0.0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features."""
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x.mean((2, 3))
