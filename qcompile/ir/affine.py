"""Per-channel affine maps (BatchNormalization, constant Mul and Add) and their folding into layers with weights.

Every weight is looked at in one layout, [groups, outputs per group, inputs per group, kernel elements] in float64, so
that Conv, ConvTranspose, Gemm and MatMul share all arithmetic. W x + b followed by y * s + t is (s W) x + (s b + t);
x * s + t in front is (W s) x + (b + W t), exact where no padding stands in for x (the first: Jacob et al., 2018,
section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir.canonical import as_row, pads_of
from qcompile.ir.graph import Constant, Graph, Node, Tensor, consumers, is_inner, is_output, only_consumer, producer
from qcompile.ir.rewrites import constant_operand, disconnect, new_constant, optional_input, replace_tail
from qcompile.ir.shapes import kind_of, rank_of
from qcompile.ir.simplify import broadcasts_into

Vector = NDArray[np.float64]
CONVOLUTIONS, MATRICES = frozenset({"Conv", "ConvTranspose"}), frozenset({"Gemm", "MatMul"})  # where channels stand
LAYERS = CONVOLUTIONS | MATRICES
BLOCK = 1 << 20  # weights that are looked at together
AFFINE = frozenset({"BatchNormalization", "Mul", "Add"})


@dataclass
class Layer:
    """A node with constant weights, opened for arithmetic: change `weight` and `bias`, then `write` them back.

    weight: float64 [groups, outputs per group, inputs per group, kernel elements]; bias: float64 [outputs].
    """

    node: Node
    weight: NDArray[np.float64]
    bias: Vector

    def scale_outputs(self, scale: Vector) -> None:
        """Multiply every output channel by its factor."""
        self.weight = self.weight * scale.reshape(*self.weight.shape[:2], 1, 1)
        self.bias = self.bias * scale

    def scale_inputs(self, scale: Vector) -> None:
        """Multiply what every input channel contributes by its factor."""
        groups, _, inputs, _ = self.weight.shape
        self.weight = self.weight * scale.reshape(groups, 1, inputs, 1)

    def shift_inputs(self, shift: Vector) -> None:
        """Add what a constant on every input channel contributes."""
        groups, _, inputs, _ = self.weight.shape
        self.bias = self.bias + (self.weight * shift.reshape(groups, 1, inputs, 1)).sum((2, 3)).reshape(-1)

    def turn_outputs(self, matrix: NDArray[np.float64]) -> None:
        """Put matrix @ y in the place of the outputs y; only without groups."""
        (weight,) = self.weight
        self.weight = np.tensordot(matrix, weight, 1)[None]
        self.bias = matrix @ self.bias

    def turn_inputs(self, matrix: NDArray[np.float64]) -> None:
        """Take matrix @ x for the inputs x and give the same; only without groups, and `matrix` is orthogonal."""
        self.weight = np.moveaxis(np.tensordot(self.weight, matrix, (2, 1)), -1, 2)

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    def stored(self) -> tuple[NDArray[np.floating], NDArray[np.floating]] | None:
        """Return weight and bias as the node keeps them, or None where they overflow its type."""
        old = self.node.inputs[1]
        weight = LAYOUTS[self.node.op].store(self.weight, self.node).reshape([int(dim) for dim in old.shape])
        with np.errstate(over="ignore"):
            weight, bias = weight.astype(old.dtype), self.bias.astype(old.dtype)
        return (weight, bias) if np.isfinite(weight).all() and np.isfinite(bias).all() else None

    def write(self, graph: Graph) -> bool:
        """Store weight and bias in the graph; False, and nothing stored, where they overflow.

        A weight that other nodes read too is copied for this one. MatMul becomes Gemm where the bias asks for it.
        """
        node, stored = self.node, self.stored()
        if stored is None:
            return False
        _put(graph, node, 1, stored[0])
        if self.bias.any() or optional_input(node, 2) is not None:
            if node.op == "MatMul":
                node.op, node.attrs = "Gemm", {}
            _put(graph, node, 2, stored[1])
        return True


@dataclass
class Rescaled:
    """A layer whose channels get factors: what `Layer` does with whole weights, for chains of layers too large to open.

    `outputs` and `inputs` are the factors, float64 [outputs] and [inputs]; the weight is looked at block by block, and
    nothing changes before `write`.
    """

    node: Node
    shape: tuple[int, int, int, int]
    outputs: Vector
    inputs: Vector

    @classmethod
    def of(cls, layer: Layer) -> Rescaled:
        """Return a layer with factors of 1."""
        return cls(layer.node, layer.weight.shape, np.ones(layer.outputs), np.ones(layer.inputs))

    def output_peaks(self) -> Vector:
        """Return the largest |weight| of every output channel."""
        groups, outputs, inputs, _ = self.shape
        found, factors = np.zeros((groups, outputs)), self.inputs.reshape(groups, 1, inputs)
        for some, block in self._blocks():
            found[:, some] = (block * factors).max(2, initial=0)
        return found.reshape(-1) * self.outputs

    def input_peaks(self) -> Vector:
        """Return the largest |weight| of every input channel."""
        groups, outputs, inputs, _ = self.shape
        found, factors = np.zeros((groups, inputs)), self.outputs.reshape(groups, outputs, 1)
        for some, block in self._blocks():
            np.maximum(found, (block * factors[:, some]).max(1, initial=0), out=found)
        return found.reshape(-1) * self.inputs

    def _blocks(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield outputs, a few of every group, and their largest |weight| by input [groups, some, inputs]."""
        weight = LAYOUTS[self.node.op].view(np.asarray(self.node.inputs[1].values), self.node)
        groups, outputs, *others = weight.shape
        step = max(1, BLOCK // max(1, groups * int(np.prod(others))))
        for start in range(0, outputs, step):
            some = slice(start, start + step)
            yield some, np.abs(weight[:, some]).max(3, initial=0).astype(np.float64)

    def opened(self) -> Layer:
        """Return the layer with its factors applied; nothing is written."""
        layer = open_layer(self.node)
        assert layer is not None
        layer.scale_outputs(self.outputs)
        layer.scale_inputs(self.inputs)
        return layer


@dataclass(frozen=True)
class Kept:
    """A node as it stands, with what its constants hold: what `restore` puts back, to the bit."""

    node: Node
    op: str
    attrs: dict[str, Any]
    inputs: list[Tensor]
    values: list[tuple[Constant, Any]]

    @classmethod
    def of(cls, node: Node) -> Kept:
        """Return the node as it stands."""
        constants = [tensor for tensor in node.inputs if isinstance(tensor, Constant)]
        return cls(node, node.op, dict(node.attrs), list(node.inputs), [(c, c._values) for c in constants])

    def restore(self) -> None:
        """Undo whatever `Layer.write` has done to the node since."""
        self.node.op, self.node.attrs, self.node.inputs = self.op, dict(self.attrs), list(self.inputs)
        for constant, values in self.values:
            constant.values = values


@dataclass(frozen=True)
class Layout:
    """How an operator stores its weight: `view` to the common layout and `store` back, both of (array, node)."""

    view: Callable[[NDArray[np.float64], Node], NDArray[np.float64]]
    store: Callable[[NDArray[np.float64], Node], NDArray[np.float64]]


def _groups(node: Node) -> int:
    return int(node.attrs.get("group", 1))


def _rows_first(weight: NDArray[np.float64], node: Node) -> NDArray[np.float64]:
    return weight if node.attrs.get("transB", 0) else weight.T


LAYOUTS = {
    "Conv": Layout(
        lambda w, node: w.reshape(_groups(node), w.shape[0] // _groups(node), w.shape[1], -1),
        lambda w, node: w,
    ),
    "ConvTranspose": Layout(
        lambda w, node: w.reshape(_groups(node), w.shape[0] // _groups(node), w.shape[1], -1).swapaxes(1, 2),
        lambda w, node: w.swapaxes(1, 2),
    ),
    "Gemm": Layout(
        lambda w, node: _rows_first(w, node)[None, :, :, None],
        lambda w, node: _rows_first(w[0, :, :, 0], node),
    ),
    "MatMul": Layout(lambda w, node: w.T[None, :, :, None], lambda w, node: w[0, :, :, 0].T),
}


def open_layer(node: Node) -> Layer | None:
    """Return `node` opened for arithmetic, or None if it has no constant float weight and constant bias per output."""
    if node.op not in LAYERS or node.domain not in (None, "", "ai.onnx"):
        return None
    weight, bias = node.inputs[1], optional_input(node, 2)
    if not isinstance(weight, Constant) or weight.dtype not in (np.float16, np.float32, np.float64):
        return None
    if len(weight.shape) < (3 if node.op.startswith("Conv") else 2) or (node.op == "MatMul" and len(weight.shape) != 2):
        return None
    if node.attrs.get("alpha", 1.0) != 1 or (bias is not None and node.attrs.get("beta", 1.0) != 1):
        return None
    view = LAYOUTS[node.op].view(np.asarray(weight.values).astype(np.float64), node)
    outputs = view.shape[0] * view.shape[1]
    if bias is None:
        return Layer(node, view, np.zeros(outputs))
    row = as_row(bias, outputs) if isinstance(bias, Constant) else None
    return None if row is None else Layer(node, view, row.astype(np.float64))


def _put(graph: Graph, node: Node, position: int, values: NDArray[np.floating]) -> None:
    old = optional_input(node, position)
    if isinstance(old, Constant) and len(old.outputs) == 1 and not is_output(graph, old):
        old.values = np.asarray(values, order="C")
        return
    stem = f"{old.name}_folded" if old is not None else f"{node.name}_bias"
    fresh = new_constant(graph, stem, values)
    if position < len(node.inputs):
        node.inputs[position] = fresh
    else:
        node.inputs.append(fresh)


# --- affine maps


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
    one number, or one per channel.
    """
    if node.op not in AFFINE or node.domain not in (None, "", "ai.onnx"):
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
