"""A vision transformer as nodes of an ONNX graph."""

import math

import numpy as np

from awcl_jax.export.onnx_nodes import Graph
from awcl_jax.models.rotary import angles
from awcl_jax.models.vit import HEAD, ViT


def add_encoder(graph: Graph, picture: str, encoder: ViT, *, output: str) -> None:
    """Add the nodes from a normalised picture [b, 1, h, w] to its features.

    Args:
      graph: has the arrays of the encoder under timm's names.
      picture: name of the picture.
      encoder: without parameters.
      output: name of the features.
    """
    x = _tokens(graph, picture, encoder)
    if encoder.options.pre_norm:
        x = _norm(graph, "norm_pre", x, encoder)
    for i in range(encoder.depth):
        x = _block(graph, f"blocks.{i}", x, encoder)
    if not encoder.options.norm_after:
        x = _norm(graph, "norm", x, encoder)
    cls = graph.add("Gather", x, graph.constant("first", 0, np.int64), axis=1)
    patches = graph.add(
        "Slice",
        x,
        graph.constant("patches_start", [encoder.prefix], np.int64),
        graph.constant("patches_end", [np.iinfo(np.int64).max], np.int64),
        graph.constant("patches_axis", [1], np.int64),
    )
    mean = graph.add("ReduceMean", patches, axes=[1], keepdims=0)
    parts = {"token": [cls], "mean": [mean], "both": [cls, mean]}[encoder.options.pool]
    if encoder.options.norm_after:
        parts = [_norm(graph, "fc_norm", part, encoder) for part in parts]
    graph.add("Concat", *parts, axis=1, output=output)


def _tokens(graph: Graph, picture: str, encoder: ViT) -> str:
    names = ["patch_embed.proj.weight"] + ([] if encoder.options.pre_norm else ["patch_embed.proj.bias"])
    x = graph.add("Conv", picture, *names, strides=[encoder.patch] * 2)
    x = graph.add("Reshape", x, graph.constant("flat", [0, encoder.width, -1], np.int64))
    x = graph.add("Transpose", x, perm=[0, 2, 1])
    if encoder.options.rotary:
        _add_turns(graph, encoder)
    else:
        # The positions of the patches; the class token's, a row of zeros, is left out.
        count = math.prod(encoder.grid)
        graph.arrays["pos_embed"] = graph.arrays["pos_embed"][:, -count:]
        x = graph.add("Add", x, "pos_embed")
    before = ["cls_token"] + (["reg_token"] if encoder.options.registers else [])
    first = graph.add("Concat", *before, axis=1)
    batch = graph.add("Shape", picture, start=0, end=1)
    shape = graph.add("Concat", batch, graph.constant("tokens", [encoder.prefix, encoder.width], np.int64), axis=0)
    return graph.add("Concat", graph.add("Expand", first, shape), x, axis=1)


def _add_turns(graph: Graph, encoder: ViT) -> None:
    """Add cosines and sines [t, d] of rotary positions, d features of a head, and where a feature's other half is."""
    a = angles(encoder.grid, before=encoder.prefix, features=HEAD)
    graph.constant("cosines", np.concatenate([np.cos(a), np.cos(a)], axis=1))
    graph.constant("sines", np.concatenate([-np.sin(a), np.sin(a)], axis=1))
    graph.constant("other_half", np.roll(np.arange(HEAD), HEAD // 2), np.int64)


def _turned(graph: Graph, x: str) -> str:
    """Add u cos a - v sin a and v cos a + u sin a of queries or keys [b, heads, t, d], of halves u and v."""
    other = graph.add("Gather", x, "other_half", axis=3)
    return graph.add("Add", graph.add("Mul", x, "cosines"), graph.add("Mul", other, "sines"))


def _block(graph: Graph, name: str, x: str, encoder: ViT) -> str:
    for i, part in ((1, _attention), (2, _perceptron)):
        y = part(graph, name, _norm(graph, f"{name}.norm{i}", x, encoder), encoder)
        if encoder.options.layer_scale:
            y = graph.add("Mul", y, f"{name}.gamma_{i}" if encoder.options.rotary else f"{name}.ls{i}.gamma")
        x = graph.add("Add", x, y)
    return x


def _attention(graph: Graph, name: str, x: str, encoder: ViT) -> str:
    if encoder.options.rotary:
        q_bias, v_bias = (graph.arrays.pop(f"{name}.attn.{part}_bias") for part in "qv")
        graph.constant(f"{name}.attn.qkv.bias", np.concatenate([q_bias, np.zeros_like(q_bias), v_bias]))
    qkv = graph.dense(f"{name}.attn.qkv", x)
    qkv = graph.add("Reshape", qkv, graph.constant("heads", [0, 0, 3, encoder.heads, HEAD], np.int64))
    qkv = graph.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    q, k, v = (graph.add("Gather", qkv, graph.constant(f"part_{i}", i, np.int64), axis=0) for i in range(3))
    if encoder.options.rotary:
        q, k = _turned(graph, q), _turned(graph, k)
    products = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
    weights = graph.add("Softmax", graph.add("Mul", products, graph.constant("scale", HEAD**-0.5)), axis=-1)
    y = graph.add("Transpose", graph.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    y = graph.add("Reshape", y, graph.constant("joined", [0, 0, encoder.width], np.int64))
    return graph.dense(f"{name}.attn.proj", y)


def _perceptron(graph: Graph, name: str, x: str, encoder: ViT) -> str:
    y = graph.dense(f"{name}.mlp.fc1", x)
    return graph.dense(f"{name}.mlp.fc2", _activation(graph, y, encoder.options.activation))


def _activation(graph: Graph, x: str, kind: str) -> str:
    if kind == "quick_gelu":  # x sigmoid(1.702 x)
        return graph.add("Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.constant("quick", 1.702))))
    if kind == "gelu":
        return graph.gelu(x)
    # x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
    cubed = graph.add("Mul", graph.add("Pow", x, graph.constant("three", 3)), graph.constant("cubic", 0.044715))
    inner = graph.add("Mul", graph.add("Add", x, cubed), graph.constant("outer", math.sqrt(2 / math.pi)))
    half = graph.add("Mul", x, graph.constant("one_half", 0.5))
    return graph.add("Mul", half, graph.add("Add", graph.add("Tanh", inner), graph.constant("one", 1)))


def _norm(graph: Graph, name: str, x: str, encoder: ViT) -> str:
    return graph.layer_norm(name, x, epsilon=encoder.options.epsilon)
