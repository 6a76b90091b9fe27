"""Activation functions, recognised in the spellings of exporters."""

from __future__ import annotations

import numpy as np

from qcompile.ir.graph import Constant, Graph, Node, Tensor, only_consumer, producer
from qcompile.ir.rewrites import constant_operand, insert_behind, new_constant, rule, scalar

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


ACTIVATIONS = (
    rule("HardSwish recognised", "Mul", _hard_swish),
    rule("HardSigmoid recognised", "Mul Div", _hard_sigmoid),
)
