"""A ConvNeXt as nodes of an ONNX graph."""

import numpy as np

from awcl_jax.export.onnx_nodes import Graph
from awcl_jax.models.convnext import EPSILON, STEM, ConvNeXt

_FEATURES_LAST, _FEATURES_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def add_encoder(graph: Graph, picture: str, encoder: ConvNeXt, *, output: str) -> None:
    """Add the nodes from a normalised picture [b, 1, h, w] to its features.

    Args:
      graph: has the arrays of the encoder under timm's names.
      picture: name of the picture.
      encoder: without parameters.
      output: name of the features.
    """
    x = _norm(graph, "stem.1", _patches(graph, "stem.0", picture, STEM))
    for stage, blocks in enumerate(encoder.stage_sizes):
        if stage:
            name = f"stages.{stage}.downsample"
            x = _patches(graph, f"{name}.1", _norm(graph, f"{name}.0", x), 2)
        for i in range(blocks):
            x = _block(graph, f"stages.{stage}.blocks.{i}", x, encoder)
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.layer_norm("head.norm", pooled, epsilon=EPSILON, output=output)


def _patches(graph: Graph, name: str, x: str, size: int) -> str:
    return graph.add("Conv", x, f"{name}.weight", f"{name}.bias", strides=[size] * 2)


def _norm(graph: Graph, name: str, x: str) -> str:
    """Add the normalisation of maps whose features are the second axis."""
    y = graph.layer_norm(name, graph.add("Transpose", x, perm=_FEATURES_LAST), epsilon=EPSILON)
    return graph.add("Transpose", y, perm=_FEATURES_FIRST)


def _block(graph: Graph, name: str, x: str, encoder: ConvNeXt) -> str:
    kernel = f"{name}.conv_dw.weight"
    groups, pads = graph.arrays[kernel].shape[0], [graph.arrays[kernel].shape[-1] // 2] * 4
    y = graph.add("Conv", x, kernel, f"{name}.conv_dw.bias", group=groups, pads=pads)
    y = graph.layer_norm(f"{name}.norm", graph.add("Transpose", y, perm=_FEATURES_LAST), epsilon=EPSILON)
    y = graph.gelu(graph.dense(f"{name}.mlp.fc1", y))
    if encoder.second:
        y = _response_norm(graph, f"{name}.mlp.grn", y)
    y = graph.dense(f"{name}.mlp.fc2", y)
    if not encoder.second:
        y = graph.add("Mul", y, f"{name}.gamma")
    return graph.add("Add", x, graph.add("Transpose", y, perm=_FEATURES_FIRST))


def _response_norm(graph: Graph, name: str, x: str) -> str:
    response = graph.add("ReduceL2", x, axes=[1, 2], keepdims=1)
    mean = graph.add("ReduceMean", response, axes=[3], keepdims=1)
    share = graph.add("Div", response, graph.add("Add", mean, graph.constant("small", 1e-6, np.float32)))
    scaled = graph.add("Mul", graph.add("Mul", x, share), f"{name}.weight")
    return graph.add("Add", graph.add("Add", x, scaled), f"{name}.bias")
