"""How float nodes are written: other operators of the same function, where ONNX Runtime makes more of them.

It merges float nodes before it looks for integer kernels, not always to the better:

- Of a Relu or Clip that alone reads a Gemm or MatMul it wants the QuantizeLinear behind it; without one the product is
  float, and its weight is dequantized in every run. Max and Min do not concern it.
- A sum with a MatMul of rank 2 becomes a float Gemm, and one in front of LayerNormalization a SkipLayerNormalization,
  which takes six times as long as the two. Of a Sum it makes neither.

And it moves to channels-last around integer convolutions, through Resize and Pad too, which fails for cubic Resize and
where they name axes. It stops at a Reshape.
"""

from __future__ import annotations

from collections.abc import Collection

from qcompile.ir import Node, consumers
from qcompile.ir.shapes import rank_of

NORMALIZING = frozenset({"LayerNormalization", "ReduceMean"})  # the latter as the start of one that is written out
Operators = list[tuple[str, list[str]]]  # in a row: each with its inputs behind the first, what the one before makes


def spelling(node: Node, inputs: list[str], products: Collection[str], zero: str) -> Operators:
    """Return the operators to write for a float node with these inputs, or [] where it is written as it stands.

    `products` are the float32 outputs of integer kernels, `zero` is the name of the constant 0.
    """
    if node.op == "Add":
        normalized = any(reader.op in NORMALIZING for reader in consumers(node.outputs[0]))
        return [("Sum", inputs[1:])] if normalized or any(name in products for name in inputs) else []
    if node.op not in ("Relu", "Clip") or inputs[0] not in products:
        return []
    bounds = [zero] if node.op == "Relu" else inputs[1:]
    return [(op, [bound]) for op, bound in zip(("Max", "Min"), bounds) if bound]


def reshape_in_front(node: Node) -> list[int]:
    """Return the shape of a Reshape that changes nothing, where `node` does not work in channels-last, else []."""
    cubic = node.op == "Resize" and (node.attrs.get("mode") == "cubic" or "axes" in node.attrs)
    some = node.op == "Pad" and len(node.inputs) > 3 and bool(node.inputs[3].name)
    return [0] * (rank_of(node.inputs[0]) or 0) if cubic or some else []
