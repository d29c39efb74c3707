"""ResNet-18, -34 and -50 (He et al. 2016) as in torchvision, for grey frames."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from awcl_jax.models.convolution import convolve
from awcl_jax.models.pooling import max_pool
from awcl_jax.runtime.errors import InputError

STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
STRIDES = ("v1", "v1.5")
WIDEST = 64  # times the width of the paper

# Traced once for all layers of a shape, with its gradient: tracing a ResNet takes a fifth of the time.
_BatchNorm = nn.jit(nn.BatchNorm)
_he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """A convolution without bias, padded as in torchvision.

    XLA's "SAME" would pad a strided convolution on the other side and shift the features.

    Attributes:
      features: number of output features.
      kernel_size: height and width.
      stride: in both directions.
      padding: pixels of zeros on every side.
      dtype: type of the arithmetic.
    """

    features: int
    kernel_size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 features"]:
        """Return the feature maps."""
        kernel = self.param("kernel", _he, (*self.kernel_size, x.shape[-1], self.features))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), stride=self.stride, padding=self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [b, h, w, c] to [b, h / stride, w / stride, features]."""
        y = self.conv(self.features, (3, 3), stride=self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y)
        return nn.relu(y + _shortcut(self, x, self.features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet-50), with four times as many output features."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]
    strides: str = "v1.5"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Map [b, h, w, c] to [b, h / stride, w / stride, 4 * features]."""
        # Version 1 of the paper strides in the first 1x1 convolution, torchvision's ("v1.5") in the 3x3.
        first, second = (self.stride, 1) if self.strides == "v1" else (1, self.stride)
        y = self.conv(self.features, (1, 1), stride=first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), stride=second, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, (1, 1), name="conv3")(y)
        y = self.norm(name="bn3")(y)
        return nn.relu(y + _shortcut(self, x, 4 * self.features))


def _shortcut(block: "BasicBlock | Bottleneck", x: Array, features: int) -> Array:
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, (1, 1), stride=block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x)


class ResNet(nn.Module):
    """Frames to features.

    Attributes:
      stage_sizes: blocks in each of the stages.
      block: BasicBlock or Bottleneck.
      width: features of the first stage; 64 in the paper.
      dtype: type of the arithmetic; parameters and running statistics stay float32.
      axis_name: mesh axis over which batch norm synchronises its statistics; None outside of a
        mapped function.
      remat: keep only the input of each block, and recompute the rest for the gradient (Chen et al. 2016).
    """

    stage_sizes: Sequence[int]
    block: Callable[..., Any]
    width: int = 64
    dtype: Any = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b f"]:
        """Return the features of each frame, averaged over the picture, in float32."""
        return self.maps(x, train=train)[-1].astype(jnp.float32).mean(axis=(1, 2))

    @nn.compact
    def maps(self, x: Float[Array, "b h w c"], *, train: bool) -> list[Float[Array, "b _ _ _"]]:
        """Return the feature maps, fine to coarse: before the pooling at 1/2, then of each stage at 1/4, 1/8 ...

        A map's edge is the one before, halved and rounded up.
        """
        conv = functools.partial(Conv, dtype=self.dtype)
        norm = functools.partial(
            _BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name if train else None,
        )
        x = conv(self.width, (7, 7), stride=2, padding=3, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        maps = [x]
        x = max_pool(x)
        make_block = nn.remat(self.block) if self.remat else self.block
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                name = f"layer{stage + 1}_{i}"
                x = make_block(features=self.width * 2**stage, stride=stride, conv=conv, norm=norm, name=name)(x)
            maps.append(x)
        return maps


def make_resnet(
    arch: str,
    *,
    width_factor: float = 1.0,
    strides: str = "v1.5",
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
) -> ResNet:
    """Make an encoder by its name.

    Args:
      arch: "resnet18", "resnet34" or "resnet50".
      width_factor: multiplies the number of features in every layer (Zagoruyko & Komodakis 2016).
      strides: where ResNet-50 strides: "v1" in the 1x1 (He et al. 2016), "v1.5" in the 3x3 convolution (torchvision).
      dtype: type of the arithmetic.
      axis_name: mesh axis over which batch norm synchronises.
      remat: recompute blocks for their gradient.

    Raises:
      InputError: unknown architecture or strides, or an invalid width.
    """
    if arch not in STAGES:
        raise InputError(f"The encoder must be one of {', '.join(STAGES)}; got {arch!r}.")
    if strides not in STRIDES:
        raise InputError(f"Strides must be 'v1' or 'v1.5'; got {strides!r}.")
    if not 0 < width_factor <= WIDEST:
        raise InputError(f"The width factor of an encoder must be above 0 and at most {WIDEST}; got {width_factor}.")
    block = functools.partial(Bottleneck, strides=strides) if arch == "resnet50" else BasicBlock
    width = max(1, round(64 * width_factor))
    return ResNet(stage_sizes=STAGES[arch], block=block, width=width, dtype=dtype, axis_name=axis_name, remat=remat)
