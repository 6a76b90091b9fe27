"""Constant folding with the ONNX reference implementation, one node at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qcompile.ir.graph import Constant, Graph, Node, Tensor, is_output, is_standard, node_proto, topological
from qcompile.ir.shapes import kind_of, known_integers, static_dims

UNSTABLE = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
}
GROWING = {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "EyeLike", "OneHot", "Upsample"}
ROOM = 1 << 16  # bytes a folded constant may have even if its inputs are smaller


def fold_constants(graph: Graph) -> int:
    """Turn every tensor that depends on constants alone, or on known dimensions alone, into a constant.

    Nodes that draw random numbers, that make an output of the graph, that have subgraphs or a custom domain, or that
    would store much more than they read are left alone. Returns the number of nodes that became superfluous.
    """
    folded = 0
    for node in topological(graph):
        if any(is_output(graph, tensor) for tensor in node.outputs):
            continue
        values = _known_shape(node) or _dequantized(node) or _evaluated(node, graph.opset)
        if values is None:
            continue
        for tensor, value in zip(list(node.outputs), values):
            if tensor.name:
                tensor.inputs.clear()
                tensor.to_constant(value)
        node.outputs.clear()
        node.inputs.clear()
        folded += 1
    if folded:
        graph.nodes = [node for node in graph.nodes if node.outputs]
    return folded


def _known_shape(node: Node) -> list[NDArray[Any]] | None:
    if len(node.outputs) != 1:
        return None
    known = known_integers(node.outputs[0])
    if known is None or not all(isinstance(value, int) for value in known.flat):
        return None
    return [known.astype(np.int32 if node.outputs[0].dtype == np.int32 else np.int64)]


def _dequantized(node: Node) -> list[NDArray[Any]] | None:
    """Return a weight that is stored in few bits, of a type that numpy may lack: the reference has not all of them."""
    constant = all(isinstance(tensor, Constant) for tensor in node.inputs if tensor.name)
    if node.op != "DequantizeLinear" or not is_standard(node) or not constant:
        return None
    arrays = [np.asarray(tensor.values) for tensor in node.inputs if tensor.name]
    if any(name.startswith("e") for name in arrays[0].dtype.fields or ()):  # float8 of onnx 1.18: bits under that name
        return None
    codes, scale, *zero = (array.astype(np.float32) for array in arrays)
    axis, block = node.attrs.get("axis", 1), node.attrs.get("block_size", 0)

    def spread(values: NDArray[Any]) -> NDArray[Any]:
        if block:
            return np.take(np.repeat(values, block, axis), range(codes.shape[axis]), axis)
        along = [1] * codes.ndim
        if values.size > 1:
            along[axis] = values.size
        return values.reshape(along)

    return [(codes - spread(zero[0]) if zero else codes) * spread(scale)]


def _evaluated(node: Node, opset: int) -> list[NDArray[Any]] | None:
    if not _foldable(node):
        return None
    inputs = {tensor.name: np.asarray(tensor.values) for tensor in node.inputs if tensor.name}
    growth = 8 if node.op == "Cast" else 2  # weights that are stored in few bits
    room = max(ROOM, growth * sum(value.nbytes for value in inputs.values()))
    if any(_too_large(node, tensor, room) for tensor in node.outputs):
        return None
    proto = node_proto(node, [t.name for t in node.inputs], [t.name for t in node.outputs])
    ports = [onnx.helper.make_empty_tensor_value_info(name) for name in inputs]
    results = [onnx.helper.make_empty_tensor_value_info(tensor.name) for tensor in node.outputs if tensor.name]
    graph = onnx.helper.make_graph([proto], "fold", ports, results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            values = ReferenceEvaluator(model).run(None, inputs)
    except Exception:  # the reference lacks operators and types; such a node is computed at run time, as it was
        return None
    if any(not isinstance(value, np.ndarray | np.generic) or value.nbytes > room for value in values):
        return None
    named = iter(values)
    arrays = [np.asarray(next(named)) if tensor.name else np.empty(0) for tensor in node.outputs]
    fits = all(
        array.dtype.kind in "fiub" and tensor.dtype in (None, array.dtype)
        for array, tensor in zip(arrays, node.outputs)
        if tensor.name
    )
    return arrays if fits else None


def _foldable(node: Node) -> bool:
    return (
        node.op not in UNSTABLE
        and is_standard(node)
        and not vars(node).get("exotic_attributes")
        and not any(isinstance(value, Graph) for value in node.attrs.values())
        and all(not tensor.name or _readable(node, tensor) for tensor in node.inputs)
    )


def _readable(node: Node, tensor: Tensor) -> bool:
    return isinstance(tensor, Constant) and bool(kind_of(tensor) or node.op == "Cast")


def _too_large(node: Node, tensor: Any, room: int) -> bool:
    dims = static_dims(tensor)
    if dims is None:
        return node.op in GROWING
    return int(np.prod(dims)) * (np.dtype(tensor.dtype).itemsize if tensor.dtype is not None else 8) > room
