"""Activation functions, recognised in the spellings of exporters."""

from __future__ import annotations

import numpy as np

from qcompile.ir.graph import Constant, Graph, Node, Tensor, Variable, only_consumer, producer
from qcompile.ir.rewrites import constant_operand, insert_before, insert_behind, new_constant, rule, scalar
from qcompile.ir.shapes import kind_of, rank_of, size_of
from qcompile.ir.simplify import broadcasts_into

CLOSE = 1e-6  # relative: exporters print 1/6 with seven digits
HARD_SWISH_OPSET = 14


def _hard_sigmoid(graph: Graph, node: Node) -> bool:
    """Clip(x + 3, 0, 6) / 6 is HardSigmoid with slope 1/6."""
    scaled = _scaled(node.outputs[0])
    source = _clipped(graph, scaled[0]) if scaled else None
    if scaled is None or source is None or not _close(scaled[1] * 6, 1):
        return False
    node.op, node.attrs = "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}
    node.inputs = [source]
    return True


def _hard_swish(graph: Graph, node: Node) -> bool:
    """x times the hard sigmoid of x, with the division by 6 on either side, behind, or inside HardSigmoid."""
    if graph.opset < HARD_SWISH_OPSET or len(node.inputs) != 2:
        return False
    for data, gate in (node.inputs, reversed(node.inputs)):
        (x, before), (clip, behind) = _scaled(data) or (data, 1.0), _scaled(gate) or (gate, 1.0)
        for source, factor in ((data, 1.0), (x, before)):
            gated, slope = _clipped(graph, clip), 6 * behind
            if gated is None:
                gated, slope = _hard_sigmoid_input(clip), behind
            if gated is source:
                node.op, node.attrs, node.inputs = "HardSwish", {}, [source]
                if not _close(slope * factor, 1):
                    insert_behind(graph, node, "Mul", [_number(graph, node, slope * factor, source)])
                return True
    return False


def _number(graph: Graph, node: Node, value: float, like: Tensor) -> Constant:
    return new_constant(graph, f"{node.name}_factor", np.array(value, dtype=like.dtype or np.float32))


def _scaled(tensor: Tensor) -> tuple[Tensor, float] | None:
    """Return (x, factor) if `tensor` is x times or over a constant number."""
    node = producer(tensor)
    pair = constant_operand(node) if node is not None and node.op in ("Mul", "Div") else None
    number = scalar(pair[1]) if pair else None
    if node is None or pair is None or not number or (node.op == "Div" and pair[0] is not node.inputs[0]):
        return None
    return pair[0], number if node.op == "Mul" else 1 / number


def _clipped(graph: Graph, tensor: Tensor) -> Tensor | None:
    """Return x if `tensor` is Clip(x + 3, 0, 6) and nobody else reads the sum."""
    clip = producer(tensor)
    if clip is None or clip.op != "Clip" or [scalar(bound) for bound in clip.inputs[1:]] != [0.0, 6.0]:
        return None
    add = producer(clip.inputs[0])
    pair = constant_operand(add) if add is not None and add.op == "Add" else None
    if pair is None or only_consumer(graph, clip.inputs[0]) is None or scalar(pair[1]) != 3.0:
        return None
    return pair[0]


def _hard_sigmoid_input(tensor: Tensor) -> Tensor | None:
    node = producer(tensor)
    if node is None or node.op != "HardSigmoid":
        return None
    fits = _close(6 * node.attrs.get("alpha", 0.2), 1) and _close(2 * node.attrs.get("beta", 0.5), 1)
    return node.inputs[0] if fits else None


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * abs(b)


# --- clips


def _clip_for_bound(graph: Graph, node: Node) -> bool:
    """Max or Min of a tensor and a number is Relu or Clip, which quantizers absorb."""
    pair = constant_operand(node)
    bound = scalar(pair[1]) if pair and kind_of(pair[1]) == "f" and broadcasts_into(pair[1], pair[0]) else None
    if pair is None or bound is None:
        return False
    if node.op == "Max" and bound == 0:
        node.op, node.inputs = "Relu", [pair[0]]
        return True
    number = _number(graph, node, bound, pair[0])
    node.inputs = [pair[0], number] if node.op == "Max" else [pair[0], Variable.empty(), number]
    node.op = "Clip"
    return True


def _add_for_sum(graph: Graph, node: Node) -> bool:
    """Sum of two is Add, Sum of more a row of them."""
    if len(node.inputs) < 2:
        return False
    total = node.inputs[0]
    for tensor in node.inputs[1:-1]:
        total = insert_before(graph, node, total, "Add", [tensor])
    node.op, node.inputs = "Add", [total, node.inputs[-1]]
    return True


# --- rectifiers with slopes


def _one_slope(graph: Graph, node: Node) -> bool:
    """PRelu of one slope is Relu or LeakyRelu."""
    slopes = node.inputs[1]
    if not isinstance(slopes, Constant) or kind_of(slopes) != "f" or not size_of(slopes):
        return False
    slope = float(np.ravel(slopes.values)[0])
    if not np.all(slopes.values == slope) or not broadcasts_into(slopes, node.inputs[0]):
        return False
    node.op, node.attrs = ("LeakyRelu", {"alpha": slope}) if slope else ("Relu", {})
    node.inputs = node.inputs[:1]
    return True


def _prelu(graph: Graph, node: Node) -> bool:
    """max(x, 0) - slopes * max(-x, 0), as a sum or a difference, is PRelu."""
    if len(node.inputs) != 2:
        return False
    for front, behind in ((node.inputs, 1), (node.inputs[::-1], -1)):
        relu, mul = (producer(tensor) for tensor in front)
        pair = constant_operand(mul) if mul is not None and mul.op == "Mul" else None
        if relu is None or pair is None or relu.op != "Relu" or _below_zero(pair[0]) is not relu.inputs[0]:
            continue
        if node.op == "Sub" and behind < 0:
            return False
        slopes = np.asarray(pair[1].values) * (1 if node.op == "Sub" else -1)
        node.op, node.attrs = "PRelu", {}
        node.inputs = [relu.inputs[0], new_constant(graph, f"{pair[1].name}_slopes", slopes.astype(pair[1].dtype))]
        return True
    return False


def _below_zero(tensor: Tensor) -> Tensor | None:
    """Return x if `tensor` is max(-x, 0)."""
    relu = producer(tensor)
    neg = producer(relu.inputs[0]) if relu is not None and relu.op == "Relu" else None
    return neg.inputs[0] if neg is not None and neg.op == "Neg" else None


def _prelu_of_max(graph: Graph, node: Node) -> bool:
    """max(x, slopes * x) is PRelu where no slope is above 1."""
    if len(node.inputs) != 2:
        return False
    for x, scaled in (node.inputs, node.inputs[::-1]):
        mul = producer(scaled)
        pair = constant_operand(mul) if mul is not None and mul.op == "Mul" else None
        if pair is None or pair[0] is not x or kind_of(pair[1]) != "f" or not broadcasts_into(pair[1], x):
            continue
        if np.all(np.asarray(pair[1].values) <= 1):
            node.op, node.inputs = "PRelu", [x, pair[1]]
            return True
    return False


# --- smooth ones, in the fastest form


def _mish(graph: Graph, node: Node) -> bool:
    """x tanh(log(1 + e)) with e = exp(x) is x n / (n + 2) with n = e (e + 2): the kernel of Softplus is slow.

    Above 20 the quotient is 1 in float32.
    """
    x = node.inputs[0] if node.op == "Mish" else _softplus_gate(node)
    if x is None or kind_of(x) not in ("f", ""):
        return False
    two = _number(graph, node, 2.0, x)
    bounded = insert_before(graph, node, x, "Clip", [Variable.empty(), _number(graph, node, 20.0, x)])
    exp = insert_before(graph, node, bounded, "Exp")
    shifted = insert_before(graph, node, exp, "Add", [two])
    product = insert_before(graph, node, exp, "Mul", [shifted])
    below = insert_before(graph, node, product, "Add", [two])
    gate = insert_before(graph, node, product, "Div", [below])
    node.op, node.attrs, node.inputs = "Mul", {}, [x, gate]
    return True


def _softplus_gate(node: Node) -> Tensor | None:
    """Return x if `node` is x * tanh(softplus(x))."""
    if node.op != "Mul" or len(node.inputs) != 2:
        return None
    for x, gate in (node.inputs, node.inputs[::-1]):
        tanh = producer(gate)
        softplus = producer(tanh.inputs[0]) if tanh is not None and tanh.op == "Tanh" else None
        if softplus is not None and softplus.op == "Softplus" and softplus.inputs[0] is x:
            return x
    return None


def _swish(graph: Graph, node: Node) -> bool:
    """Swish is x times the sigmoid of alpha x: ONNX Runtime writes it out itself, but behind all fusions."""
    source = node.inputs[0]
    if kind_of(source) != "f":
        return False
    alpha = float(node.attrs.get("alpha", 1.0))
    steep = source
    if alpha != 1:
        steep = insert_before(graph, node, source, "Mul", [_number(graph, node, alpha, source)])
    node.op, node.attrs, node.inputs = "Mul", {}, [source, insert_before(graph, node, steep, "Sigmoid")]
    return True


def _sqrt(graph: Graph, node: Node) -> bool:
    """The power 1/2 is the square root."""
    if kind_of(node.inputs[0]) != "f" or scalar(node.inputs[1]) != 0.5 or rank_of(node.inputs[1]):
        return False
    node.op, node.inputs = "Sqrt", node.inputs[:1]
    return True


def _div_for_erf(graph: Graph, node: Node) -> bool:
    """x / sqrt(2) in front of Erf, not x * sqrt(1/2): so ONNX Runtime finds Gelu."""
    pair, behind = constant_operand(node), only_consumer(graph, node.outputs[0])
    number = scalar(pair[1]) if pair else None
    if pair is None or not number or behind is None or behind.op != "Erf":
        return False
    node.op, node.inputs = "Div", [pair[0], _number(graph, node, 1 / number, pair[0])]
    return True


def ends_gelu(node: Node) -> bool:
    """Say whether this is the last product of a Gelu, x * (1 + erf(x / sqrt(2))) * 0.5: runtimes look for all of it."""
    pair = constant_operand(node)
    product = producer(pair[0]) if node.op == "Mul" and pair and scalar(pair[1]) == 0.5 else None
    sums = map(producer, product.inputs) if product is not None and product.op == "Mul" else ()
    gates = [constant_operand(item) for item in sums if item is not None and item.op == "Add"]
    return any(gate and (maker := producer(gate[0])) is not None and maker.op == "Erf" for gate in gates)


def _gelu_order(graph: Graph, node: Node) -> bool:
    """x * (g / 2) with g = 1 + erf(...) is (x * g) / 2: so ONNX Runtime finds Gelu."""
    pair, behind = constant_operand(node), only_consumer(graph, node.outputs[0])
    add = producer(pair[0]) if pair else None
    erf = constant_operand(add) if add is not None and add.op == "Add" else None
    maker = producer(erf[0]) if erf else None
    if pair is None or behind is None or behind.op != "Mul" or maker is None or maker.op != "Erf":
        return False
    others = [tensor for tensor in behind.inputs if tensor is not node.outputs[0]]
    if scalar(pair[1]) != 0.5 or len(others) != 1 or isinstance(others[0], Constant):
        return False
    node.inputs, behind.inputs = [others[0], pair[0]], [node.outputs[0], pair[1]]
    return True


ACTIVATIONS = (
    rule("Max and Min to Clip", "Max Min", _clip_for_bound),
    rule("Sum to Add", "Sum", _add_for_sum),
    rule("PRelu of one slope", "PRelu", _one_slope),
    rule("PRelu recognised", "Add Sub", _prelu),
    rule("PRelu recognised in a maximum", "Max", _prelu_of_max),
    rule("Mish in its fastest form", "Mish Mul", _mish),
    rule("Swish written out", "Swish", _swish),
    rule("power to square root", "Pow", _sqrt),
    rule("Div in front of Erf", "Mul", _div_for_erf),
    rule("Gelu in one order", "Mul", _gelu_order),
    rule("HardSwish recognised", "Mul", _hard_swish),
    rule("HardSigmoid recognised", "Mul Div", _hard_sigmoid),
)
