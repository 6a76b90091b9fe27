"""Random nodes for each operator that has a differentiation rule, as hypothesis strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One node and its inputs; None is an absent input. Float inputs are trainable, others are initializers."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1


SEEDS = st.integers(0, 2**16)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


def normal(seed: int, shape: Sequence[int]) -> Array:
    return np.random.default_rng(seed).normal(size=tuple(shape)).astype(np.float32)


def positive(seed: int, shape: Sequence[int]) -> Array:
    return np.random.default_rng(seed).uniform(0.3, 2, size=tuple(shape)).astype(np.float32)


def distinct(seed: int, shape: Sequence[int]) -> Array:
    """Values that differ by at least 0.1, for operators that pick the largest."""
    count = int(np.prod(shape))
    return (np.random.default_rng(seed).permutation(count) * 0.1 - 0.05 * count).reshape(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def unary(op: str, values: Callable[[int, Sequence[int]], Array] = normal, **attributes: Any) -> SearchStrategy[Case]:
    return st.builds(lambda seed, shape: Case(op, (values(seed, shape),), attributes), SEEDS, SHAPES)


@st.composite
def broadcast_shapes(draw: DrawFn, count: int) -> list[list[int]]:
    """Shapes that broadcast against each other: leading dimensions left out, others set to 1."""
    full = draw(SHAPES)
    shapes = []
    for _ in range(count):
        start = draw(st.integers(0, len(full)))
        shapes.append([1 if draw(st.booleans()) and draw(st.booleans()) else size for size in full[start:]])
    return shapes


@st.composite
def broadcast(draw: DrawFn, op: str, count: int = 2, values: Callable[..., Array] = normal) -> Case:
    shapes = draw(broadcast_shapes(count))
    seed = draw(SEEDS)
    return Case(op, tuple(values(seed + index, shape) for index, shape in enumerate(shapes)))


@st.composite
def where(draw: DrawFn) -> Case:
    shapes = draw(broadcast_shapes(3))
    condition = normal(draw(SEEDS), shapes[0]) > 0
    return Case("Where", (condition, normal(draw(SEEDS), shapes[1]), normal(draw(SEEDS), shapes[2])))


@st.composite
def power(draw: DrawFn) -> Case:
    if draw(st.booleans()):
        return Case("Pow", (normal(draw(SEEDS), draw(SHAPES)), np.array(2, np.int64)))
    shapes = draw(broadcast_shapes(2))
    return Case("Pow", (positive(draw(SEEDS), shapes[0]), normal(draw(SEEDS), shapes[1])))


@st.composite
def clip(draw: DrawFn) -> Case:
    low, high = (np.array(value, np.float32) if draw(st.booleans()) else None for value in (-0.5, 0.6))
    return Case("Clip", (normal(draw(SEEDS), draw(SHAPES)), low, high))


@st.composite
def prelu(draw: DrawFn) -> Case:
    shape = draw(SHAPES)
    slope = [1 if draw(st.booleans()) else size for size in shape[draw(st.integers(0, len(shape) - 1)) :]]
    return Case("PRelu", (normal(draw(SEEDS), shape), normal(draw(SEEDS), slope)))


@st.composite
def over_axis(draw: DrawFn, op: str) -> Case:
    shape = draw(SHAPES)
    return Case(op, (normal(draw(SEEDS), shape),), {"axis": draw(st.integers(-len(shape), len(shape) - 1))})


@st.composite
def gemm(draw: DrawFn) -> Case:
    m, n, k = (draw(st.integers(1, 4)) for _ in range(3))
    flip_a, flip_b = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    a, b = normal(draw(SEEDS), [k, m] if flip_a else [m, k]), normal(draw(SEEDS), [n, k] if flip_b else [k, n])
    bias = draw(st.sampled_from([None, [n], [1, n], [m, 1], [m, n], [1], []]))
    inputs = (a, b) if bias is None else (a, b, normal(draw(SEEDS), bias))
    return Case("Gemm", inputs, {"alpha": draw(st.sampled_from([1.0, 0.5])), "beta": draw(st.sampled_from([1.0, 2.0])),
                                 "transA": flip_a, "transB": flip_b})  # fmt: skip


@st.composite
def matmul(draw: DrawFn) -> Case:
    m, n, k = (draw(st.integers(1, 4)) for _ in range(3))
    left, right = draw(broadcast_shapes(2))
    a, b = draw(st.sampled_from([([k], [k, n]), ([m, k], [k]), ([k], [k]), ([m, k], [k, n])]))
    return Case("MatMul", (normal(draw(SEEDS), a if len(a) == 1 else left[-2:] + a),
                           normal(draw(SEEDS), b if len(b) == 1 else right[-2:] + b)))  # fmt: skip


@st.composite
def convolution(draw: DrawFn, op: str) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 2]))
    group = draw(st.sampled_from([1, 1, 2, 4]))
    strides, dilations, kernel = ([draw(st.integers(1, top)) for _ in range(rank)] for top in (2, 2, 3))
    inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    depthwise = draw(st.booleans()) and group > 1
    channels, results = group * (1 if depthwise else inner), group * outer
    extent = [d * (k - 1) + 1 for d, k in zip(dilations, kernel)]
    attributes: dict[str, Any] = {"strides": strides, "dilations": dilations, "group": group}
    mode = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "HALF"]))
    if mode == "HALF":
        attributes["pads"] = [size // 2 for size in extent] * 2
    elif mode == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, size - 1)) for size in extent * 2]
    elif op == "Conv":  # automatic pads, which ONNX Runtime has without dilations only
        attributes |= {"auto_pad": mode, "dilations": [1] * rank}
        extent = kernel
    transpose = op == "ConvTranspose"
    if transpose and mode == "HALF":
        attributes["output_padding"] = [draw(st.integers(0, stride - 1)) for stride in strides]
    sizes = [size + draw(st.integers(0, 3)) for size in extent]
    weight = [channels, results // group, *kernel] if transpose else [results, channels // group, *kernel]
    data = normal(draw(SEEDS), [draw(st.integers(1, 2)), channels, *sizes])
    bias = (normal(draw(SEEDS), [results]),) if draw(st.booleans()) else ()
    return Case(op, (data, normal(draw(SEEDS), weight), *bias), attributes)


@st.composite
def pool(draw: DrawFn, op: str) -> Case:
    rank = draw(st.sampled_from([1, 2, 2]))
    kernel, strides = [draw(st.integers(1, 3)) for _ in range(rank)], [draw(st.integers(1, 2)) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    attributes["pads"] = [draw(st.integers(0, size // 2)) for size in kernel] * 2
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    else:
        attributes["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    sizes = [2 * size + draw(st.integers(0, 4)) for size in kernel]
    return Case(op, (distinct(draw(SEEDS), [2, draw(st.integers(1, 3)), *sizes]),), attributes)


@st.composite
def images(draw: DrawFn, op: str) -> Case:
    shape = [2, draw(st.integers(1, 3)), *(draw(st.integers(1, 3)) for _ in range(draw(st.integers(1, 2))))]
    return Case(op, (distinct(draw(SEEDS), shape),))


@st.composite
def normalization(draw: DrawFn, op: str) -> Case:
    shape = [2, draw(st.integers(1, 3)), draw(st.integers(3, 5)), draw(st.integers(1, 3))]
    x = normal(draw(SEEDS), shape)
    if op == "LayerNormalization":
        axis = draw(st.sampled_from([1, 2, -2]))
        scale = positive(draw(SEEDS), shape[axis:])
        bias = (normal(draw(SEEDS), shape[axis:]),) if draw(st.booleans()) else ()
        return Case(op, (x, scale, *bias), {"axis": axis, "epsilon": 1e-3})
    channels = (positive(draw(SEEDS), shape[1:2]), normal(draw(SEEDS), shape[1:2]))
    if op == "InstanceNormalization":
        return Case(op, (x, *channels), {"epsilon": 1e-3})
    return Case(op, (x, *channels, normal(draw(SEEDS), shape[1:2]), positive(draw(SEEDS), shape[1:2])))


@st.composite
def reduction(draw: DrawFn, op: str) -> Case:
    shape = draw(SHAPES)
    attributes = {"keepdims": draw(st.integers(0, 1))}
    x = distinct(draw(SEEDS), shape)
    axes = draw(st.none() | st.sets(st.integers(0, len(shape) - 1), min_size=1))
    if axes is None:
        return Case(op, (x,), attributes)
    signed = [axis - len(shape) if draw(st.booleans()) else axis for axis in sorted(axes)]
    return Case(op, (x, ints(*signed)), attributes)
