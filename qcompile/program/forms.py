"""Operator traits: in which form an operator can run on integers, and which of its inputs carry data.

One row per operator; what a row cannot say is one small function that returns the reason why a node does not qualify.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Node, Tensor, Variable, activation_inputs, constant_value, is_standard
from qcompile.quant.arithmetic import quantize
from qcompile.quant.elementwise import Operation, scales_from
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Form
from qcompile.targets.schema import Target

Check = Callable[[Node], str]  # the reason why the node cannot run on integers, or ""


def data_inputs(node: Node) -> list[Variable]:
    """Return the operands of `node` that are not constant."""
    return [tensor for tensor in operands(node) if isinstance(tensor, Variable)]


def operands(node: Node) -> list[Tensor]:
    """Return the inputs that carry data through `node`: both operands of arithmetic, else the first input alone."""
    count = len(node.inputs) if node.op in VARIADIC else 2 if node.op in BINARY else 1
    return [tensor for tensor in node.inputs[:count] if tensor.name]


VARIADIC = frozenset({"Concat"})
BINARY = frozenset({"Add", "Mul", "MatMul"})
CLIPS = frozenset({"Relu", "Clip"})


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
        return Form.FLOAT, target.float_reasons.get(node.op, "no integer kernel")
    check = CHECKS.get(node.op)
    reason = _float32(node) or (check(node) if check else "")
    return (Form.FLOAT, reason) if reason else (form, "")


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


def _conv(node: Node) -> str:
    return _constant_weight(node)


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


def _concat(node: Node) -> str:
    return "" if len(data_inputs(node)) == len(node.inputs) else "it joins a constant"


def _pool(node: Node) -> str:
    if len(node.outputs) > 1:
        return "gives indices"
    return "dilated or ceil_mode" if node.attrs.get("ceil_mode", 0) or max(node.attrs.get("dilations", [1])) > 1 else ""


def _max_pool(node: Node) -> str:
    return "gives indices" if len(node.outputs) > 1 else ""


def _pad(node: Node) -> str:
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 3 or not node.inputs[2].name:
        return ""
    value = constant_value(node.inputs[2])
    return "" if value is not None and not value.any() else "pads with another value than zero"


def _resize(node: Node) -> str:
    return "" if node.attrs.get("mode", "nearest") == "nearest" else "linear Resize truncates on uint8"


def _clip(node: Node) -> str:
    bounds = clip_bounds(node)
    if bounds is None:
        return "its bounds are not constant"
    return "" if bounds[0] <= 0.0 <= bounds[1] and bounds[0] < bounds[1] else "its interval does not contain zero"


def _hard_sigmoid(node: Node) -> str:
    """An integer product whose zero point is beta and whose saturation is the clip (see `dictated`)."""
    return "" if node.attrs.get("beta", 0.5) == 0.5 else "the integer form needs beta = 0.5"


def _prelu(node: Node) -> str:
    """Slopes are rounded to 8 bits, together."""
    values = constant_value(node.inputs[1])
    return "" if values is not None and np.isfinite(values).all() and np.any(values) else "its slopes are not constant"


def _reduce_max(node: Node) -> str:
    return "" if activation_inputs(node) == data_inputs(node) else "its axes are not constant"


CHECKS: dict[str, Check] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": _binary,
    "Mul": _binary,
    "Concat": _concat,
    "AveragePool": _pool,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Resize": _resize,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
    "ReduceMax": _reduce_max,
}


HARD_SIGMOID = Quantizer(bits=8, scale=1 / 256, zero_point=0)
SHIFTED_SIGMOID = replace(HARD_SIGMOID, zero_point=128)  # as it is written: the zero point adds 1/2
HARD_SWISH_SLOPE = 1 / 6  # HardSwish is x times the HardSigmoid of this slope


def dictated(node: Node) -> Quantizer | None:
    """Return the output quantizer that an operator's integer form dictates, or None.

    HardSigmoid clip(alpha*x + 1/2, 0, 1) is a product with the constant alpha, written with scale 1/256 and zero point
    128 and read with zero point 0: the 128 is the half, the saturation of uint8 is the clip.
    """
    return HARD_SIGMOID if node.op == "HardSigmoid" else None


def told_apart(node: Node) -> tuple[float, float]:
    """Return the interval of values that `node` tells apart in its input: all beyond an end mean the same as it."""
    if node.op == "HardSwish":
        return -0.5 / HARD_SWISH_SLOPE, np.inf
    if node.op == "HardSigmoid":
        alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
        return (-beta / alpha, (1 - beta) / alpha) if alpha > 0 else (-np.inf, np.inf)
    bounds = clip_bounds(node) if node.op in CLIPS else None
    return bounds or (-np.inf, np.inf)


def slope_quantizer(node: Node, given: Quantizer) -> Quantizer:
    """Return the quantizer whose code 1 is the slope of a HardSigmoid or HardSwish, for an input of quantizer `given`.

    The slope is moved by units of float32 until the product rounds alike on all processors.
    """
    slope = HARD_SWISH_SLOPE if node.op == "HardSwish" else node.attrs.get("alpha", 0.2)
    product = Operation("Mul", np.arange(given.levels + 1, dtype=np.uint8), np.ones(given.levels + 1, np.uint8))
    factors = (Quantizer(8, scale, 0) for scale in scales_from(slope))
    alike = (factor for factor in factors if product.is_settled((given, factor, SHIFTED_SIGMOID)))
    return next(alike, Quantizer(8, slope, 0))


def slope_codes(node: Node) -> tuple[NDArray[np.uint8], Quantizer]:
    """Return the codes of the slopes of a PRelu, in their shape, and what they mean."""
    values = np.asarray(constant_value(node.inputs[1]), np.float32)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = float(np.float32((high - low) / 255))
    quantizer = Quantizer(8, scale, round(-low / scale))
    return quantize(values, quantizer), quantizer


def least_output_scale(node: Node, input_scale: float) -> float:
    """Return the smallest output scale that the integer kernel of an arithmetic node takes.

    QLinearGlobalAveragePool refuses input scale / (output scale * positions) of 256 or more; it may be 1 position.
    """
    return input_scale / 128 if node.op == "GlobalAveragePool" else 0.0


def weight_axis(node: Node) -> int:
    """Return the output-channel axis of a compute node's constant weight."""
    if node.op == "Conv":
        return 0
    return 0 if node.op == "Gemm" and node.attrs.get("transB", 0) else 1


def float_bias(node: Node) -> Any:
    """Return the float32 bias [C] of a compute node, or None."""
    if node.op == "MatMul" or len(node.inputs) < 3 or not node.inputs[2].name:
        return None
    value = constant_value(node.inputs[2])
    return None if value is None else value.reshape(-1).astype(np.float32)
