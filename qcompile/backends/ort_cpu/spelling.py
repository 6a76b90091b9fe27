"""How float nodes are written: other operators of the same function, where ONNX Runtime makes more of them.

It merges float nodes before it looks for integer kernels, not always to the better:

- Of a Relu or Clip that alone reads a Gemm or MatMul it wants the QuantizeLinear behind it; without one the product is
  float, and its weight is dequantized in every run. Max and Min do not concern it.
- A sum with a MatMul of rank 2 becomes a float Gemm, and one in front of LayerNormalization a SkipLayerNormalization,
  which takes six times as long as the two. Of a Sum it makes neither.

Some kernels are slow: that of PRelu takes ten times as long as the product and the maximum, or minimum and sum, that
it comes to.

On codes the nearest neighbour of Resize takes six times as long as rows and pixels gathered in channels-last.

And it moves to channels-last around integer convolutions, through Resize and Pad too, which fails for cubic Resize and
where they name axes. It stops at a Reshape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Node, constant_value, consumers
from qcompile.ir.shapes import rank_of, shape_of
from qcompile.program.operands import CLIPS

NORMALIZING = frozenset({"LayerNormalization", "ReduceMean"})  # the latter as the start of one that is written out
REPEATING = {  # grids on which nearest neighbours at whole scales are repeats
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
    ("tf_half_pixel_for_nn", "floor"),
}
Constant = Callable[[NDArray[Any] | np.generic, str], str]
Operators = list[tuple[str, list[str]]]  # in a row: each with its inputs behind the first, what the one before makes


def spelling(node: Node, inputs: list[str], products: Collection[str], constant: Constant) -> Operators:
    """Return the operators to write for a float node with these inputs, or [] where it is written as it stands.

    `products` are the float32 outputs of integer kernels, transposed or not; `constant` stores an array and returns its
    name.
    """
    if node.op == "PRelu":
        return _prelu(node, inputs, products, constant)
    if node.op == "Add":
        normalized = any(reader.op in NORMALIZING for reader in consumers(node.outputs[0]))
        return [("Sum", inputs[1:])] if normalized or any(name in products for name in inputs) else []
    if node.op not in CLIPS or inputs[0] not in products:
        return []
    bounds = [constant(np.float32(0), "float_0")] if node.op == "Relu" else inputs[1:]
    return [(op, [bound]) for op, bound in zip(("Max", "Min"), bounds) if bound]


def _prelu(node: Node, inputs: list[str], products: Collection[str], constant: Constant) -> Operators:
    """max(x, s x) where no slope is above 1, else x + (s - 1) min(x, 0)."""
    slopes = constant_value(node.inputs[1])
    if slopes is None or slopes.dtype != np.float32 or not np.isfinite(slopes).all():
        return []
    if slopes.max(initial=0) <= 1:
        return [("Mul", inputs[1:]), ("Max", inputs[:1])]
    total = "Sum" if inputs[0] in products else "Add"
    rest = constant(slopes - np.float32(1), f"{node.inputs[1].name}_less_1")
    return [("Min", [constant(np.float32(0), "float_0")]), ("Mul", [rest]), (total, inputs[:1])]


def reshape_in_front(node: Node) -> list[int]:
    """Return the shape of a Reshape that changes nothing, where `node` does not work in channels-last, else []."""
    cubic = node.op == "Resize" and (node.attrs.get("mode") == "cubic" or "axes" in node.attrs)
    some = node.op == "Pad" and len(node.inputs) > 3 and bool(node.inputs[3].name)
    return [0] * (rank_of(node.inputs[0]) or 0) if cubic or some else []


def repeats(node: Node) -> list[tuple[int | None, int]]:
    """Return height and width with their scales, where a Resize to the nearest repeats rows and columns; else [].

    The map has four dimensions, the scales are whole numbers; a size is None where it is open.
    """
    shape = shape_of(node.inputs[0])
    scales = constant_value(node.inputs[2]) if node.op == "Resize" and len(node.inputs) == 3 else None
    if shape is None or len(shape) != 4 or scales is None or scales.shape != (4,) or "axes" in node.attrs:
        return []
    grid = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
    whole = (scales[:2] == 1).all() and (scales == np.floor(scales)).all() and (scales >= 1).all()
    if not whole or (grid, rounding) not in REPEATING:
        return []
    return [(dim if isinstance(dim, int) else None, int(scale)) for dim, scale in zip(shape[2:], scales[2:])]
