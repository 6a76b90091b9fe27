"""MatMulNBits: a product with a weight that is packed in blocks becomes MatMul with that weight in float."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.ir.graph import unique_name
from qcompile.ir.protos import all_graphs, all_nodes, innermost_first, is_weight, set_nodes, tensor_names
from qcompile.ir.store import values_of

PACKED = "MatMulNBits"
REMEDY = "give the float model it was made from"
Array = NDArray[Any]
Weights = dict[str, TensorProto]


def unpack_weights(light: ModelProto, weights: Weights) -> int:
    """Rewrite every MatMulNBits of `light`; the float weights join `weights`. Return how many; raises InputError."""
    if not any(node.op_type == PACKED for node in all_nodes(light.graph.node)):
        return 0
    constants = {tensor.name: tensor for graph in all_graphs(light.graph) for tensor in graph.initializer} | weights
    constants |= {node.output[0]: node.attribute[0].t for node in all_nodes(light.graph.node) if is_weight(node)}
    taken, count = tensor_names(light), 0
    for graph in innermost_first(light.graph):
        nodes: list[NodeProto] = []
        for node in graph.node:
            if node.op_type != PACKED:
                nodes.append(node)
                continue
            name = unique_name(f"{node.input[1]}_float", taken)
            weights[name] = numpy_helper.from_array(_weight(node, constants), name)
            info = helper.make_tensor_value_info(name, weights[name].data_type, weights[name].dims)
            light.graph.input.append(info)  # as `hollow` writes large weights
            nodes += _product(node, name, unique_name(f"{node.output[0]}_product", taken))
            count += 1
        set_nodes(graph, nodes)
    return count


def _product(node: NodeProto, weight: str, product: str) -> list[NodeProto]:
    data, y, bias = node.input[0], node.output[0], node.input[5] if len(node.input) > 5 else ""
    if not bias:
        return [helper.make_node("MatMul", [data, weight], [y], node.name)]
    return [
        helper.make_node("MatMul", [data, weight], [product], node.name),
        helper.make_node("Add", [product, bias], [y]),
    ]


def _weight(node: NodeProto, constants: Weights) -> Array:
    """Return the weight [K, N], in the type of its scales."""
    packed, scales, zeros, order = [*node.input[1:5], "", ""][:4]
    missing = [name for name in (packed, scales, zeros, order) if name and name not in constants]
    if missing:
        what = f"the weight of node {node.name or node.output[0]!r} is computed from {missing[0]!r}"
        raise InputError(what, remedy=REMEDY)
    if zeros and order and constants[zeros].data_type == TensorProto.UINT8:
        what = f"ONNX Runtime ignores the zero points of node {node.name or node.output[0]!r} where it has a g_idx"
        raise InputError(what, remedy=REMEDY)
    values = {name: values_of(constants[name]) for name in (packed, scales, zeros, order) if name}
    attributes: dict[str, int] = {item.name: item.i for item in node.attribute}
    rows, columns, bits = attributes["K"], attributes["N"], attributes.get("bits", 4)
    blocks = -(-rows // attributes["block_size"])
    codes = _fields(values[packed].reshape(columns, -1), bits)[:, : blocks * attributes["block_size"]]
    scale = values[scales].reshape(columns, blocks)
    block_of = np.arange(rows) // attributes["block_size"] if not order else values[order][:rows]
    centre: Array = np.full((columns, blocks), float(1 << (bits - 1)), np.float32)
    if zeros:
        known = values[zeros]
        centre = _fields(known.reshape(columns, -1), bits) if known.dtype == np.uint8 else known.reshape(columns, -1)
    centred = codes[:, :rows].astype(np.float32) - centre[:, block_of].astype(np.float32)
    return np.ascontiguousarray((centred * scale[:, block_of].astype(np.float32)).astype(scale.dtype).T)


def _fields(packed: Array, bits: int) -> Array:
    """Return the numbers [N, fields] of `bits` bits in bytes [N, bytes], the lowest bits first."""
    fields = packed[:, :, None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return np.asarray(fields).reshape(len(packed), -1)
