"""A vision transformer with random weights, written as exporters write one."""

from __future__ import annotations

import math

import numpy as np
import onnx
from placement_models import Builder

WIDTH, HEADS, PATCH, CLASSES = 192, 3, 16, 1000  # of ViT-Tiny (Dosovitskiy et al., 2021; Touvron et al., 2021)


def vision_transformer(size: int = 224, blocks: int = 6) -> onnx.ModelProto:
    """A ViT-Tiny of fewer blocks for images of `size` pixels; the mean of the tokens goes to the classifier."""
    net = Builder()
    tokens = (size // PATCH) ** 2

    def shape(*sizes: int) -> str:
        return net.constant(np.array(sizes, np.int64), "shape")

    def number(value: float) -> str:
        return net.constant(np.float32(value), "number")

    def dense(x: str, given: int, made: int) -> str:
        weight = (net.random.standard_normal((given, made)) / given**0.5).astype(np.float32)
        bias = (net.random.standard_normal(made) * 0.1).astype(np.float32)
        return net.op("Add", net.op("MatMul", x, net.constant(weight, "weight")), net.constant(bias, "bias"))

    def norm(x: str) -> str:
        gain, shift = net.random.uniform(0.5, 1.5, WIDTH), net.random.normal(0, 0.1, WIDTH)
        constants = [net.constant(values.astype(np.float32), "norm") for values in (gain, shift)]
        return net.op("LayerNormalization", x, *constants, axis=-1, epsilon=1e-6)

    def heads(x: str, perm: list[int]) -> str:
        return net.op("Transpose", net.op("Reshape", x, shape(0, tokens, HEADS, WIDTH // HEADS)), perm=perm)

    def attention(x: str) -> str:
        query, key, value = (dense(x, WIDTH, WIDTH) for _ in range(3))
        scores = net.op("MatMul", heads(query, [0, 2, 1, 3]), heads(key, [0, 2, 3, 1]))
        scaled = net.op("Mul", scores, number((WIDTH // HEADS) ** -0.5))
        mixed = net.op("MatMul", net.op("Softmax", scaled, axis=-1), heads(value, [0, 2, 1, 3]))
        joined = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), shape(0, tokens, WIDTH))
        return dense(joined, WIDTH, WIDTH)

    def gelu(x: str) -> str:
        gate = net.op("Add", net.op("Erf", net.op("Div", x, number(math.sqrt(2)))), number(1))
        return net.op("Mul", net.op("Mul", x, gate), number(0.5))

    patch = (net.random.standard_normal((WIDTH, 3, PATCH, PATCH)) / (3 * PATCH**2) ** 0.5).astype(np.float32)
    bias = net.constant(np.zeros(WIDTH, np.float32), "bias")
    sizes = [PATCH, PATCH]
    x = net.op("Conv", "image", net.constant(patch, "weight"), bias, kernel_shape=sizes, strides=sizes)
    x = net.op("Transpose", net.op("Reshape", x, shape(0, WIDTH, tokens)), perm=[0, 2, 1])
    place = net.random.standard_normal((1, tokens, WIDTH)) * 0.1
    x = net.op("Add", x, net.constant(place.astype(np.float32), "place"))
    for _ in range(blocks):
        x = net.op("Add", x, attention(norm(x)))
        x = net.op("Add", x, dense(gelu(dense(norm(x), WIDTH, 4 * WIDTH)), 4 * WIDTH, WIDTH))
    pooled = net.op("ReduceMean", norm(x), net.constant(np.array([1]), "axes"), keepdims=0)
    return net.model([3, size, size], [dense(pooled, WIDTH, CLASSES)])
