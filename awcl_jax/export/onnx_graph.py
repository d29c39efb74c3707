"""The encoder as an ONNX graph, written node by node: few kinds of nodes, where a converter needs many packages."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import PyTree
from onnx import TensorProto, helper, numpy_helper

from awcl_jax.export import onnx_convnext, onnx_vit
from awcl_jax.export.onnx_nodes import Graph
from awcl_jax.export.preprocessing import Preprocessing
from awcl_jax.models.convnext import ConvNeXt
from awcl_jax.models.convnext_weights import convnext_to_torch
from awcl_jax.models.encoders import Encoder, feature_count
from awcl_jax.models.resnet import STAGES
from awcl_jax.models.vit import ViT
from awcl_jax.models.vit_weights import vit_to_torch
from awcl_jax.models.weights import to_torch

_OPSET, _IR = 17, 8  # of 2022: later versions of readers support them, too


def write_onnx(
    path: Path,
    variables: Mapping[str, PyTree],
    encoder: Encoder,
    *,
    arch: str,
    strides: str,
    preprocessing: Preprocessing,
) -> None:
    """Write an encoder with its preprocessing: `frames` uint8 [batch, size, size] to `features` float32 [batch, f].

    Args:
      path: the file.
      variables: `params` and `batch_stats` of the encoder, for grey frames. The graph keeps them under the names of
        torchvision or, if it is not a ResNet, of timm.
      encoder: without parameters.
      arch: of the encoder.
      strides: of the encoder.
      preprocessing: of its frames; `size` above is its `frame_size`.

    Raises:
      OSError: the file cannot be written.
    """
    if isinstance(encoder, ViT):
        graph = Graph(vit_to_torch(variables, encoder))
        onnx_vit.add_encoder(graph, _preprocess(graph, preprocessing), encoder, output="features")
    elif isinstance(encoder, ConvNeXt):
        graph = Graph(convnext_to_torch(variables))
        onnx_convnext.add_encoder(graph, _preprocess(graph, preprocessing), encoder, output="features")
    else:
        graph = Graph(to_torch(variables))
        _add_resnet(graph, _preprocess(graph, preprocessing), arch=arch, strides=strides, output="features")
    size, features = preprocessing.frame_size, feature_count(encoder, arch)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"{arch} encoder",
            [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", size, size])],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", features])],
            [numpy_helper.from_array(array, name) for name, array in graph.arrays.items()],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR,
        producer_name="awcl_jax",
    )
    helper.set_model_props(model, {"preprocessing": json.dumps(preprocessing.describe())})
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))


def _add_resnet(graph: Graph, maps: str, *, arch: str, strides: str, output: str) -> None:
    maps = graph.norm("bn1", graph.conv("conv1", maps, stride=2), relu=True)
    maps = graph.add("MaxPool", maps, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, blocks in enumerate(STAGES[arch], start=1):
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            maps = _block(graph, f"layer{stage}.{i}", maps, stride=stride, v1=strides == "v1")
    graph.add("Flatten", graph.add("GlobalAveragePool", maps), output=output)


def _preprocess(graph: Graph, preprocessing: Preprocessing) -> str:
    picture = graph.add("Cast", "frames", to=TensorProto.FLOAT)
    picture = graph.add("Unsqueeze", picture, graph.constant("channel_axis", [1], np.int64))
    for _ in range(preprocessing.halvings):
        picture = graph.add("AveragePool", picture, kernel_shape=[2, 2], strides=[2, 2])
        picture = graph.add("Floor", graph.add("Add", picture, graph.constant("half", 0.5)))
    weights = preprocessing.weights()
    picture = graph.add("MatMul", graph.constant("row_weights", weights), picture)
    picture = graph.add("MatMul", picture, graph.constant("column_weights", weights.T))
    picture = graph.add("Div", picture, graph.constant("white", 255.0))
    picture = graph.add("Sub", picture, graph.constant("mean", preprocessing.mean))
    return graph.add("Div", picture, graph.constant("std", preprocessing.std))


def _block(graph: Graph, name: str, maps: str, *, stride: int, v1: bool) -> str:
    bottleneck = f"{name}.conv3.weight" in graph.arrays
    # As in models.resnet: a bottleneck of v1.5 strides in its second convolution.
    first, second = (1, stride) if bottleneck and not v1 else (stride, 1)
    inner = graph.norm(f"{name}.bn1", graph.conv(f"{name}.conv1", maps, stride=first), relu=True)
    inner = graph.norm(f"{name}.bn2", graph.conv(f"{name}.conv2", inner, stride=second), relu=bottleneck)
    if bottleneck:
        inner = graph.norm(f"{name}.bn3", graph.conv(f"{name}.conv3", inner))
    if f"{name}.downsample.0.weight" in graph.arrays:
        maps = graph.norm(f"{name}.downsample.1", graph.conv(f"{name}.downsample.0", maps, stride=stride))
    return graph.add("Relu", graph.add("Add", inner, maps))
