"""An ONNX graph while it is written: nodes in order, and the named arrays that they read."""

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper


class Graph:
    """Nodes in order, and the named arrays that they read.

    Attributes:
      arrays: by name.
      nodes: in order.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """Start with these arrays and no nodes."""
        self.arrays = arrays
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node, and return the name of its output."""
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: object, dtype: type = np.float32) -> str:
        """Add an array, and return its name."""
        self.arrays[name] = np.asarray(value, dtype)
        return name

    def conv(self, name: str, maps: str, *, stride: int = 1) -> str:
        """Add a convolution of a layer, padded by half of its kernel."""
        size = self.arrays[f"{name}.weight"].shape[-1]
        return self.add("Conv", maps, f"{name}.weight", strides=[stride] * 2, pads=[size // 2] * 4)

    def norm(self, name: str, maps: str, *, relu: bool = False) -> str:
        """Add the batch norm of a layer."""
        names = (f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var"))
        maps = self.add("BatchNormalization", maps, *names, epsilon=1e-5)
        return self.add("Relu", maps) if relu else maps

    def layer_norm(self, name: str, x: str, *, epsilon: float, output: str = "") -> str:
        """Add a layer's normalisation of the last axis."""
        names = f"{name}.weight", f"{name}.bias"
        return self.add("LayerNormalization", x, *names, axis=-1, epsilon=epsilon, output=output)

    def dense(self, name: str, x: str) -> str:
        """Add a linear layer of the last axis."""
        y = self.add("MatMul", x, self.add("Transpose", f"{name}.weight", perm=[1, 0]))
        return self.add("Add", y, f"{name}.bias")

    def gelu(self, x: str) -> str:
        """Add x (1 + erf(x / sqrt 2)) / 2."""
        share = self.add("Erf", self.add("Mul", x, self.constant("sqrt_half", math.sqrt(0.5))))
        half = self.add("Mul", x, self.constant("one_half", 0.5))
        return self.add("Mul", half, self.add("Add", share, self.constant("one", 1)))
