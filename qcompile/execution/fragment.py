"""A few steps of a program as a model of their own: what layer-by-layer passes run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import onnx
from onnx import helper

from qcompile.backends import fake_writer
from qcompile.ir import Graph
from qcompile.ir.graph import element_type
from qcompile.ir.store import Store
from qcompile.program.lower import Program, Step, Value
from qcompile.quant.plan import Plan


def fragment(
    graph: Graph,
    plan: Plan,
    steps: Sequence[Step],
    inputs: Iterable[Value],
    outputs: Iterable[str],
    store: Store | None = None,
) -> onnx.ModelProto:
    """Return `steps` as a model in float arithmetic (fake-quant weights, codes of activations).

    `inputs` are values made before the fragment: codes in their container, tensors of the graph with their own type.
    Large weights go to `store`, if there is one.
    """
    writer = fake_writer(graph, plan, Program(graph, tuple(steps)), store)

    def kind(value: Value) -> int:
        if value.quantizer is None:
            return element_type(writer.tensors[value.name])
        return helper.np_dtype_to_tensor_dtype(value.quantizer.grid.dtype)

    infos = [helper.make_tensor_value_info(value.name, kind(value), None) for value in inputs]
    model = writer.fragment(infos, [onnx.ValueInfoProto(name=name) for name in outputs])
    if any(node.op_type == "Transpose" for node in model.graph.node):
        _dequantize_for_each(model.graph)
    return model


def _dequantize_for_each(graph: onnx.GraphProto) -> None:
    """Give every reader a DequantizeLinear of its own.

    Run as fake quantization, ONNX Runtime 1.31 moves a Transpose past one that is shared as if it had one reader, and
    cannot load the model, or would compute with wrong axes.
    """
    shared = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    seen: Counter[str] = Counter()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in shared and seen[name]:
                copied = onnx.NodeProto()
                copied.CopyFrom(shared[name])
                copied.name, copied.output[0] = f"{copied.name}/{seen[name]}", f"{name}/{seen[name]}"
                node.input[place] = copied.output[0]
                nodes.append(copied)
            seen[name] += 1
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def boundary(steps: Sequence[Step]) -> tuple[list[Value], set[str]]:
    """Return the values that `steps` read from outside, and the names of those they make."""
    made: set[str] = set()
    read: dict[str, Value] = {}
    for step in steps:
        read.update({value.name: value for value in step.reads if value.name not in made and value.name not in read})
        made.update(value.name for value in step.outputs)
    return list(read.values()), made
