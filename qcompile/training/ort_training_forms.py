"""A region in operators that onnxruntime-training 1.19 differentiates.

Its gradients are built from the graph as it stands: there is no gradient of Round, and none of a pair of
QuantizeLinear and DequantizeLinear. Rounding is therefore an addition and a subtraction, whose derivative is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import onnx
from onnx import TensorProto, helper, numpy_helper

from qcompile.autodiff import LOWERINGS, Node, Tape
from qcompile.autodiff.rules.quantizers import grid_of
from qcompile.training.region import LOSS, RECONSTRUCTION, Region

# (v + 1.5 * 2^23) - 1.5 * 2^23 rounds half to even in float32, for |v| < 2^22; codes are far below.
ROUNDING: Final = float(3 << 22)


def differentiable(region: Region) -> onnx.ModelProto:
    """Return the region's graph with LOSS and RECONSTRUCTION as outputs; parameters that they read are initializers."""
    tape = Tape(region.model)
    for proto in region.model.graph.node:
        form = (LOWERINGS | FORMS).get((proto.domain, proto.op_type))
        if form is None:
            tape.keep(proto)
        else:
            form(tape, Node.of(proto))
    tape.infer()
    model = tape.assemble([LOSS, RECONSTRUCTION])
    graph, read = model.graph, {name for node in model.graph.node for name in node.input}
    inputs = [item for item in graph.input if item.name in read and item.name not in region.parameters]
    del graph.input[:], graph.output[:]
    graph.input.extend(inputs)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in (LOSS, RECONSTRUCTION))
    trained = {name: item.start for name, item in region.parameters.items() if name in read}
    graph.initializer.extend(numpy_helper.from_array(start, name) for name, start in trained.items())
    return model


def _activation(g: Tape, node: Node) -> None:
    """s clip(round(x/s)), or x + mask (that - x)."""
    x, scale, chosen = node.inputs[0], node.inputs[1], node.input(2)
    zero, grid = float(node.attributes["zero_point"]), grid_of(node)
    rounded = g.sub(g.add(g.div(x, scale), ROUNDING), ROUNDING)
    clipped = g.clip(rounded, grid.low - zero, grid.high - zero)
    if not chosen:
        g.op("Mul", clipped, scale, output=node.outputs[0])
        return
    quantized = g.mul(clipped, scale)
    change = g.mul(g.sub(quantized, x), g.cast(chosen, to=TensorProto.FLOAT))
    g.op("Add", x, change, output=node.outputs[0])


def _hard_sigmoid(g: Tape, node: Node) -> None:
    alpha, beta = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
    line = g.add(g.mul(node.inputs[0], alpha), beta)
    g.op("Clip", line, g.value(0.0), g.value(1.0), output=node.outputs[0])


def _hard_swish(g: Tape, node: Node) -> None:
    line = g.add(g.mul(node.inputs[0], 1 / 6), 0.5)
    g.op("Mul", node.inputs[0], g.clip(line, 0.0, 1.0), output=node.outputs[0])


FORMS: Final[dict[tuple[str, str], Callable[[Tape, Node], None]]] = {
    ("qcompile", "FakeQuantActivation"): _activation,
    ("", "HardSigmoid"): _hard_sigmoid,
    ("", "HardSwish"): _hard_swish,
}
