"""Shape arithmetic that starts at the inputs of the graph: no tensor is waited for only because of its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby

import numpy as np
import onnx

from qcompile.ir.graph import Graph, Node, Tensor, Variable, fresh_name, is_standard, producer, replace_uses
from qcompile.ir.load import to_graph
from qcompile.ir.rewrites import new_constant, sweep
from qcompile.ir.shapes import Dim, known_integers, outline, shape_of

Axis = tuple[Tensor, int]  # of a graph input


def read_shapes_of_inputs(graph: Graph) -> int:
    """Let what reads the shape of an inner tensor read those of inputs, where they are the same; return how often.

    They are the same where shape inference, from the inputs alone, gives a size the symbol that an input has. What the
    file says about its inner tensors and outputs is no proof.
    """
    if not any(_reads_inner_shape(node) for node in graph.nodes):
        return 0
    proven = _inferred_from_inputs(graph).tensors()
    axes: dict[Dim, Axis] = {}
    for tensor in graph.inputs:
        for axis, dim in enumerate(shape_of(tensor) or []):
            if isinstance(dim, str):
                axes.setdefault(dim, (tensor, axis))
    changed = 0
    for picks in (True, False):  # what picks a size first: then nobody may be left who reads the whole shape
        for node in [node for node in graph.nodes if _reads_inner_shape(node) and (node.op != "Shape") is picks]:
            known = known_integers(proven[node.outputs[0].name])
            dims = [] if known is None else known.reshape(-1).tolist()
            if known is not None and dims and axes.keys() >= set(dims):  # a number among them: it stays
                replace_uses(graph, node.outputs[0], _spell(graph, node, dims, known.ndim, axes))
                changed += 1
        sweep(graph)
    return changed


def _reads_inner_shape(node: Node) -> bool:
    """Say whether `node` is the Shape of a tensor that a node makes, or picks sizes of such a one."""
    if not is_standard(node) or not node.inputs:
        return False
    shape = node if node.op == "Shape" else producer(node.inputs[0]) if node.op in ("Gather", "Slice") else None
    return shape is not None and shape.op == "Shape" and producer(shape.inputs[0]) is not None


def _inferred_from_inputs(graph: Graph) -> Graph:
    """Return a copy of `graph`, large weights left out, with the shapes that follow from those of its inputs."""
    with outline(graph) as model:
        del model.graph.value_info[:]
        for info in model.graph.output:
            info.type.tensor_type.ClearField("shape")
        with suppress(Exception):  # of operators that ONNX does not know; then nothing is proven
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        return to_graph(model)


def _spell(graph: Graph, node: Node, dims: Sequence[Dim], rank: int, axes: dict[Dim, Axis]) -> Tensor:
    """Return a tensor that holds `dims`, sizes of inputs."""
    parts: list[Tensor] = []
    for _, group in groupby(dims, lambda dim: axes[dim][0].name):
        run = list(group)
        places = np.array([axes[dim][1] for dim in run], np.int64)
        index = new_constant(graph, f"{node.name}_axes", places if rank else places.reshape(()))
        parts.append(_make(graph, node, "Gather", [_shape(graph, axes[run[0]][0]), index]))
    return parts[0] if len(parts) == 1 else _make(graph, node, "Concat", parts, axis=0)


def _shape(graph: Graph, source: Tensor) -> Tensor:
    """Return the shape of a graph input; one node makes it for all."""
    for reader in source.outputs:
        if reader.op == "Shape" and not reader.attrs:
            return reader.outputs[0]
    shape = Variable(fresh_name(graph, f"{source.name}_shape"), np.dtype(np.int64), None)
    graph.nodes.insert(0, Node("Shape", fresh_name(graph, f"{source.name}_Shape"), {}, [source], [shape]))
    return shape


def _make(graph: Graph, node: Node, op: str, inputs: list[Tensor], **attrs: int) -> Tensor:
    """Put a node in front of `node`, whose result has its type; return what it makes."""
    made = Variable(fresh_name(graph, f"{node.outputs[0].name}_{op.lower()}"), np.dtype(np.int64), None)
    place = next(index for index, item in enumerate(graph.nodes) if item is node)
    graph.nodes.insert(place, Node(op, fresh_name(graph, f"{node.name}_{op}"), attrs, inputs, [made]))
    return made
