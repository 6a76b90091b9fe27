"""In which form a node can run on integers: a table per target, and reasons against single nodes.

What a row of the table cannot say is a small function that returns the reason why a node does not qualify: those that
hold wherever codes are affine are here, those of one runtime's kernels in the folder of their target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from qcompile.ir import Node, activation_inputs, constant_value, consumers, is_standard, producer
from qcompile.ir.protos import LAYERS
from qcompile.program.operands import clip_bounds, data_inputs
from qcompile.quant.plan import Form
from qcompile.targets.schema import Target

Check = Callable[[Node], str]  # the reason why the node cannot run on integers, or ""


def integer_form(node: Node, target: Target) -> tuple[Form, str]:
    """Return the form in which `node` can run on integers, or (Form.FLOAT, the reason why it cannot)."""
    if not is_standard(node):
        return Form.FLOAT, f"operator of the custom domain {node.domain}"
    if node.op in target.compute:
        form = Form.COMPUTE
    elif node.op in target.arithmetic:
        form = Form.ARITHMETIC
    elif node.op in target.codes | target.clips:
        form = Form.CODES
    else:
        return Form.FLOAT, target.float_reasons.get(node.op, target.float_reason)
    reason = next((text for check in _checks(node, target) if (text := check(node))), "")
    return (Form.FLOAT, reason) if reason else (form, "")


def _checks(node: Node, target: Target) -> list[Check]:
    sums = [_sum_with_layer] if target.unrounded_sums and node.op == "Add" else []
    return [_float32, *(checks[node.op] for checks in (CHECKS, target.checks) if node.op in checks), *sums]


def _float32(node: Node) -> str:
    kinds = {tensor.dtype for tensor in (*data_inputs(node), *node.outputs[:1]) if tensor.dtype is not None}
    if not data_inputs(node):
        return "reads constants only"
    return "" if all(not isinstance(kind, int) and np.dtype(kind) == np.float32 for kind in kinds) else "not float32"


def _constant_weight(node: Node) -> str:
    weight = constant_value(node.inputs[1])
    if weight is None or weight.dtype != np.float32:
        return "its weight is not a float32 constant"
    if not weight.size:
        return "its weight has no values"
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        return ""
    value = constant_value(bias)
    outputs = weight.shape[0 if node.op == "Conv" or node.attrs.get("transB", 0) else 1]
    return "" if value is not None and value.size == outputs else "its bias is not one constant per output channel"


def _gemm(node: Node) -> str:
    if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
        return "Gemm with transA, alpha or beta"
    return _constant_weight(node)


def _matmul(node: Node) -> str:
    left, right = (constant_value(tensor) for tensor in node.inputs)
    if left is not None:
        return "its first operand is constant"
    if right is not None and not right.size:
        return "its weight has no values"
    return "" if right is None or right.ndim == 2 else "its weight is not a matrix"


def _binary(node: Node) -> str:
    values = [constant_value(tensor) for tensor in node.inputs]
    return "" if all(value is None or (value.dtype == np.float32 and value.size) for value in values) else "not float32"


def _sum_with_layer(node: Node) -> str:
    """A residual sum, in one kernel with the layer that makes one of two operands for it alone."""
    made_by = [producer(tensor) for tensor in data_inputs(node) if len(consumers(tensor)) == 1]
    layers = [maker for maker in made_by if maker is not None and maker.op in LAYERS]
    return "" if layers and len(data_inputs(node)) == 2 else "no layer in front of it whose kernel could add"


def _concat(node: Node) -> str:
    return "" if len(data_inputs(node)) == len(node.inputs) else "it joins a constant"


def _max_pool(node: Node) -> str:
    return "gives indices" if len(node.outputs) > 1 else ""


def _pad(node: Node) -> str:
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 3 or not node.inputs[2].name:
        return ""
    value = constant_value(node.inputs[2])
    return "" if value is not None and not value.any() else "pads with another value than zero"


def _clip(node: Node) -> str:
    bounds = clip_bounds(node)
    if bounds is None:
        return "its bounds are not constant"
    return "" if bounds[0] <= 0.0 <= bounds[1] and bounds[0] < bounds[1] else "its interval does not contain zero"


def _reduce_max(node: Node) -> str:
    return "" if activation_inputs(node) == data_inputs(node) else "its axes are not constant"


CHECKS: Final[Mapping[str, Check]] = {
    "Conv": _constant_weight,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _binary,
    "Mul": _binary,
    "Concat": _concat,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Clip": _clip,
    "ReduceMax": _reduce_max,
}
