"""What nodes read and what they do with it, whatever the target: facts of ONNX operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompile.ir import Node, Tensor, Variable, constant_value

VARIADIC = frozenset({"Concat"})
BINARY = frozenset({"Add", "Mul", "MatMul"})
CLIPS = frozenset({"Relu", "Clip"})
HARD_SWISH_SLOPE = 1 / 6  # HardSwish is x times the HardSigmoid of this slope


def data_inputs(node: Node) -> list[Variable]:
    """Return the operands of `node` that are not constant."""
    return [tensor for tensor in operands(node) if isinstance(tensor, Variable)]


def operands(node: Node) -> list[Tensor]:
    """Return the inputs that carry data through `node`: both operands of arithmetic, else the first input alone."""
    return [tensor for tensor in node.inputs[: operand_count(node.op, len(node.inputs))] if tensor.name]


def operand_count(op: str, inputs: int) -> int:
    """Return how many of the first of so many inputs of an operator carry data."""
    return inputs if op in VARIADIC else 2 if op in BINARY else 1


def clip_bounds(node: Node) -> tuple[float, float] | None:
    """Return the bounds of a Relu or Clip, or None where they are not constant."""
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for position, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            value = constant_value(tensor)
            if value is None or value.size != 1:
                return None
            bounds[position] = float(value.reshape(()))
    return bounds[0], bounds[1]


def told_apart(node: Node) -> tuple[float, float]:
    """Return the interval of values that `node` tells apart in its input: all beyond an end mean the same as it."""
    if node.op == "HardSwish":
        return -0.5 / HARD_SWISH_SLOPE, np.inf
    if node.op == "HardSigmoid":
        alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
        return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else (-np.inf, np.inf)
    bounds = clip_bounds(node) if node.op in CLIPS else None
    return bounds or (-np.inf, np.inf)


def weight_axis(node: Node) -> int:
    """Return the output-channel axis of a compute node's constant weight."""
    if node.op == "Conv":
        return 0
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else 1


def is_depthwise(node: Node) -> bool:
    """Say whether `node` is a convolution each of whose filters sees one of several channels."""
    return node.op == "Conv" and node.attrs.get("group", 1) > 1 and node.inputs[1].shape[1] == 1


def float_bias(node: Node) -> Any:
    """Return the float32 bias [C] of a compute node, or None."""
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    value = constant_value(node.inputs[2])
    return None if value is None else value.reshape(-1).astype(np.float32)
