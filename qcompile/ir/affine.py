"""Per-channel affine maps (BatchNormalization, constant Mul and Add) and their folding into layers with weights.

W x + b followed by y * s + t is (s W) x + (s b + t); x * s + t in front is (W s) x + (b + W t), exact where no padding
stands in for x (the first: Jacob et al., 2018, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qcompile.ir.activations import ends_gelu
from qcompile.ir.canonical import pads_of
from qcompile.ir.graph import (
    Constant,
    Graph,
    Node,
    Tensor,
    consumers,
    is_inner,
    is_output,
    is_standard,
    only_consumer,
    producer,
)
from qcompile.ir.layers import Layer, Vector, open_layer
from qcompile.ir.protos import LAYERS
from qcompile.ir.rewrites import constant_operand, disconnect, new_constant, replace_tail
from qcompile.ir.shapes import kind_of, rank_of
from qcompile.ir.simplify import broadcasts_into

AFFINE = frozenset({"BatchNormalization", "Mul", "Add"})


@dataclass(frozen=True)
class Affine:
    """y = x * scale + shift per channel: both float64 [channels]; `data` is x, `node` what makes y."""

    node: Node
    data: Tensor
    scale: Vector
    shift: Vector


def affine_of(node: Node, *, rank: int, axis: int, channels: int) -> Affine | None:
    """Return `node` as an affine map over `channels` of dimension `axis`, or None if it is none.

    A BatchNormalization must be in inference form with constant parameters; a Mul or Add must have a constant that is
    one number, or one per channel. The product at the end of a Gelu is none: without it no runtime would find the Gelu.
    """
    if node.op not in AFFINE or not is_standard(node) or ends_gelu(node):
        return None
    if node.op == "BatchNormalization":
        return _batch_norm(node, channels) if axis == 1 else None
    pair = constant_operand(node)
    if pair is None or kind_of(pair[1]) != "f":
        return None
    values = _per_channel(pair[1], rank, axis, channels)
    if values is None:
        return None
    is_mul = node.op == "Mul"
    ones, zeros = np.ones(channels), np.zeros(channels)
    return Affine(node, pair[0], values if is_mul else ones, zeros if is_mul else values)


def _batch_norm(node: Node, channels: int) -> Affine | None:
    if batch_norm_obstacle(node):
        return None
    gamma, beta, mean, variance = (np.asarray(tensor.values).astype(np.float64) for tensor in node.inputs[1:5])
    scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    if scale.shape != (channels,) or not np.isfinite(scale).all():
        return None
    return Affine(node, node.inputs[0], scale, beta - mean * scale)


def batch_norm_obstacle(node: Node) -> str:
    """Return why a BatchNormalization is not a constant affine map, or ""."""
    if node.attrs.get("training_mode", 0):
        return "it is in training mode"
    if not all(isinstance(tensor, Constant) for tensor in node.inputs[1:5]):
        return "its parameters are not constant"
    return "its statistics are read" if any(tensor.outputs for tensor in node.outputs[1:]) else ""


def _per_channel(constant: Constant, rank: int, axis: int, channels: int) -> Vector | None:
    shape = [int(dim) for dim in constant.shape]
    if len(shape) > rank:
        return None
    full = [1] * (rank - len(shape)) + shape
    if any(dim != 1 for i, dim in enumerate(full) if i != axis) or full[axis] not in (1, channels):
        return None
    return np.broadcast_to(np.asarray(constant.values).astype(np.float64).reshape(-1), (channels,))


# --- folding


def fold_behind(graph: Graph, node: Node) -> bool:
    """Fold the affine map that is the only reader of a layer's output into the layer."""
    behind = only_consumer(graph, node.outputs[0]) if node.op in LAYERS else None
    if behind is None or behind.op not in AFFINE:
        return False
    layer = open_layer(node)
    rank = _rank(node, node.outputs[0])
    if layer is None or rank is None:
        return False
    affine = affine_of(behind, rank=rank, axis=rank - 1 if node.op == "MatMul" else 1, channels=layer.outputs)
    if affine is None or affine.data is not node.outputs[0]:
        return False
    if node.op == "MatMul" and affine.shift.any() and rank_of(node.inputs[0]) != 2:
        return False  # MatMul has no bias, and Gemm takes matrices only
    layer.scale_outputs(affine.scale)
    layer.bias = layer.bias + affine.shift
    if not layer.write(graph):
        return False
    replace_tail(node, behind)
    return True


def fold_before(graph: Graph, node: Node) -> bool:
    """Fold an affine map into all the layers that read it; only if every reader can take it."""
    opened = _takers(graph, node)
    if isinstance(opened, str):
        return False
    for affine, layer in opened:
        layer.shift_inputs(affine.shift)
        layer.scale_inputs(affine.scale)
    if any(layer.stored() is None for _, layer in opened):
        return False
    data = opened[0][0].data
    for _, layer in opened:
        layer.write(graph)
        layer.node.inputs[0] = data
    disconnect(node)
    return True


def _takers(graph: Graph, node: Node) -> list[tuple[Affine, Layer]] | str:
    """Return the layers that read `node`, opened, each with the map over its inputs; or why they cannot take it."""
    result = node.outputs[0]
    readers = consumers(result)
    if is_output(graph, result) or not readers:
        return "its result is an output of the model"
    opened = []
    for reader in readers:
        layer = None if is_inner(reader) else open_layer(reader)
        if layer is None or reader.attrs.get("transA", 0) or [t is result for t in reader.inputs].count(True) != 1:
            return f"{reader.op} {reader.name!r} reads its result and has no constant weights"
        rank = _rank(reader, result)
        axis = 1 if reader.op != "MatMul" or rank is None else rank - 1
        affine = affine_of(node, rank=rank, axis=axis, channels=layer.inputs) if rank is not None else None
        if affine is None or reader.inputs[0] is not result:
            return f"its channels are not those of {reader.op} {reader.name!r}"
        if affine.shift.any() and not _takes_shift(reader):
            return f"its shift is no constant behind {reader.op} {reader.name!r}, which pads, overlaps or has no bias"
        opened.append((affine, layer))
    return opened


def _rank(layer: Node, tensor: Tensor) -> int | None:
    if layer.op.startswith("Conv"):
        return len(layer.inputs[1].shape)
    return 2 if layer.op == "Gemm" else rank_of(tensor)


def _takes_shift(node: Node) -> bool:
    """Say whether a constant on an input channel becomes one constant on each output channel.

    Padding is not shifted, so the border differs; in ConvTranspose every output sees other elements of the kernel.
    """
    if node.op == "MatMul":
        return rank_of(node.inputs[0]) == 2
    pads = pads_of(node) if node.op == "Conv" else None
    return node.op == "Gemm" or (pads is not None and not any(pads))


def swap_mul_and_add(graph: Graph, node: Node) -> bool:
    """x * a + b, read by layers that pad, becomes (x + b/a) * a: the Mul folds into them, and only the Add stays."""
    pair = constant_operand(node) if node.op == "Add" else None
    mul = producer(pair[0]) if pair else None
    inner = constant_operand(mul) if mul is not None and mul.op == "Mul" else None
    if pair is None or mul is None or inner is None or only_consumer(graph, pair[0]) is None:
        return False
    (data, factor), shift = inner, pair[1]
    if kind_of(factor) != "f" or kind_of(shift) != "f":
        return False
    a, b = (np.asarray(constant.values).astype(np.float64) for constant in (factor, shift))
    with np.errstate(all="ignore"):
        before = (b / a).astype(shift.dtype)
    small = before.size <= max(a.size, b.size) and broadcasts_into(factor, data) and broadcasts_into(shift, data)
    if not small or not np.isfinite(before).all() or not isinstance(_takers(graph, node), str):
        return False
    kept = [(item, item.op, list(item.inputs)) for item in (mul, node)]
    mul.op, mul.inputs = "Add", [data, new_constant(graph, f"{shift.name}_over_{factor.name}", before)]
    node.op, node.inputs = "Mul", [mul.outputs[0], factor]
    if isinstance(_takers(graph, node), str):
        for item, op, inputs in kept:
            item.op, item.inputs = op, inputs
        return False
    return fold_before(graph, node)


def obstacle(graph: Graph, node: Node) -> str:
    """Return why the affine map `node` stays: what keeps it from the layer in front and from those behind."""
    if node.op == "BatchNormalization" and (reason := batch_norm_obstacle(node)):
        return reason
    front = producer(node.inputs[0])
    if front is None or front.op not in LAYERS:
        before = f"{front.op if front is not None else 'an input'} stands in front"
    elif only_consumer(graph, node.inputs[0]) is None:
        before = f"{front.op} {front.name!r} in front has other readers"
    else:
        before = f"{front.op} {front.name!r} in front has no constant weights, or others than its channels"
    behind = _takers(graph, node)
    return f"{before}; {behind if isinstance(behind, str) else 'folding overflows'}"
