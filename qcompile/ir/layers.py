"""Layers with weights, each seen in one layout, so that Conv, ConvTranspose, Gemm and MatMul share all arithmetic.

The layout is [groups, outputs per group, inputs per group, kernel elements] in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir.canonical import as_row
from qcompile.ir.graph import Constant, Graph, Node, Tensor, is_output, is_standard
from qcompile.ir.protos import LAYERS
from qcompile.ir.rewrites import new_constant, optional_input

Vector = NDArray[np.float64]
BLOCK = 1 << 20  # weights that are looked at together


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

    `output_factors` and `input_factors` are float64 [outputs] and [inputs]; the weight is looked at block by block, and
    nothing changes before `write`.
    """

    node: Node
    shape: tuple[int, int, int, int]
    output_factors: Vector
    input_factors: Vector

    @classmethod
    def of(cls, layer: Layer) -> Rescaled:
        """Return a layer with factors of 1."""
        return cls(layer.node, layer.weight.shape, np.ones(layer.outputs), np.ones(layer.inputs))

    def output_peaks(self) -> Vector:
        """Return the largest |weight| of every output channel."""
        groups, outputs, inputs, _ = self.shape
        found, factors = np.zeros((groups, outputs)), self.input_factors.reshape(groups, 1, inputs)
        for some, block in self._blocks():
            found[:, some] = (block * factors).max(2, initial=0)
        return found.reshape(-1) * self.output_factors

    def input_peaks(self) -> Vector:
        """Return the largest |weight| of every input channel."""
        groups, outputs, inputs, _ = self.shape
        found, factors = np.zeros((groups, inputs)), self.output_factors.reshape(groups, outputs, 1)
        for some, block in self._blocks():
            np.maximum(found, (block * factors[:, some]).max(1, initial=0), out=found)
        return found.reshape(-1) * self.input_factors

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
        layer.scale_outputs(self.output_factors)
        layer.scale_inputs(self.input_factors)
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
    if node.op not in LAYERS or not is_standard(node):
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
