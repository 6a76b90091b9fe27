"""Einsum that is a product of matrices, as MatMul between transposes and reshapes.

Every letter of an equation of two operands does one of four things: it counts batches (in both operands and the
output), rows (in the left operand and the output), columns (in the right one and the output), or it is summed over (in
both operands). What is in one operand alone and summed over is summed in front. Equations with other letters (twice in
one operand) stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np

from qcompile.ir.graph import Constant, Graph, Node, Tensor
from qcompile.ir.rewrites import insert_before, insert_behind, integers, new_constant, rule
from qcompile.ir.shapes import kind_of, rank_of, shape_of


@dataclass(frozen=True)
class Product:
    """left [rows, batch, inner] times right [batch, inner, columns]; every field is letters in order."""

    left: str
    right: str
    output: str

    @property
    def batch(self) -> str:
        """In both operands and the output."""
        return "".join(c for c in self.left if c in self.right and c in self.output)

    @property
    def rows(self) -> str:
        """In the left operand and the output."""
        return "".join(c for c in self.left if c not in self.right)

    @property
    def columns(self) -> str:
        """In the right operand and the output."""
        return "".join(c for c in self.right if c not in self.left)

    @property
    def inner(self) -> str:
        """In both operands and summed over."""
        return "".join(c for c in self.left if c in self.right and c not in self.output)

    @property
    def is_product(self) -> bool:
        """Say whether all letters are of the four kinds and something is summed."""
        once = all(len(set(part)) == len(part) for part in (self.left, self.right, self.output))
        return once and bool(self.inner) and set(self.output) == set(self.batch + self.rows + self.columns)

    @property
    def outer_rows(self) -> str:
        """The rows in front of the batches: MatMul repeats the right operand along them."""
        return self.rows[:-1]

    @property
    def made(self) -> str:
        """The order of the letters behind the product."""
        return self.outer_rows + self.batch + self.rows[-1:] + self.columns


def letters(equation: str, ranks: Sequence[int | None]) -> tuple[list[str], str] | None:
    """Return the letters of operands and output, with ellipses and an implied output written out."""
    before, arrow, output = equation.replace(" ", "").partition("->")
    operands = before.split(",")
    if not arrow:
        once = sorted(c for c in set(before) - set(",.") if before.count(c) == 1)
        output = ("..." if "..." in before else "") + "".join(once)
    spare = [c for c in ascii_letters if c not in equation]
    lengths = [0 if "..." not in part or rank is None else rank - len(part) + 3 for part, rank in zip(operands, ranks)]
    known = all(rank is not None or "..." not in part for part, rank in zip(operands, ranks))
    if len(operands) != len(ranks) or not known or max(lengths) > len(spare):
        return None
    hidden = "".join(spare[: max(lengths)])  # ellipses are aligned at their ends, as shapes are that broadcast
    written = [part.replace("...", hidden[len(hidden) - n :]) for part, n in zip(operands, lengths)]
    return written, output.replace("...", hidden)


def _einsum(graph: Graph, node: Node) -> bool:
    """A sum of products over two operands is MatMul."""
    found = letters(str(node.attrs["equation"]), [rank_of(tensor) for tensor in node.inputs])
    if found is None or len(node.inputs) != 2 or any(kind_of(tensor) != "f" for tensor in node.inputs):
        return False
    (left, right), output = found
    product, operands = Product(left, right, output), list(node.inputs)
    turned = product.columns and product.rows == output[-1:] and not isinstance(operands[1], Constant)
    if turned or isinstance(operands[0], Constant):
        product, operands = Product(right, left, output), operands[::-1]
    sizes = _column_sizes(product, operands[1])
    if not product.is_product or sizes is None:
        return False
    node.inputs = operands
    node.inputs = [_left(graph, node, product), _right(graph, node, product)]
    node.op, node.attrs = "MatMul", {}
    _output(graph, node, product, sizes)
    return True


def _column_sizes(product: Product, right: Tensor) -> list[int] | None:
    """Return the sizes of the columns, -1 for one that is unknown; None where two are."""
    shape = shape_of(right) or [None] * len(product.right)
    dims = [shape[product.right.index(c)] for c in product.columns]
    sizes = [dim if isinstance(dim, int) else -1 for dim in dims]
    return None if sizes.count(-1) > 1 else sizes


def _left(graph: Graph, node: Node, product: Product) -> Tensor:
    order = product.outer_rows + product.batch + product.rows[-1:] + product.inner
    tensor = _transposed(graph, node, node.inputs[0], product.left, order)
    kept = len(order) - len(product.inner)
    if len(product.inner) > 1:
        shape = integers(graph, f"{node.name}_left", *[0] * kept, -1)
        tensor = insert_before(graph, node, tensor, "Reshape", [shape])
    if not product.rows:
        tensor = insert_before(graph, node, tensor, "Unsqueeze", [integers(graph, f"{node.name}_row", -2)])
    return tensor


def _right(graph: Graph, node: Node, product: Product) -> Tensor:
    tensor, batch = node.inputs[1], len(product.batch)
    if isinstance(tensor, Constant):
        order = [product.right.index(c) for c in product.batch + product.inner + product.columns]
        values = np.asarray(tensor.values).transpose(order)
        inner = int(np.prod(values.shape[batch : batch + len(product.inner)]))
        return new_constant(graph, f"{tensor.name}_matrix", values.reshape(*values.shape[:batch], inner, -1))
    parts = (product.inner, product.columns) if len(product.inner) == 1 else (product.columns, product.inner)
    tensor = _transposed(graph, node, tensor, product.right, product.batch + "".join(parts))
    if len(product.inner) > 1:  # they are joined at the end: the sizes in front can be copied
        kept = [0] * (batch + len(product.columns))
        tensor = insert_before(graph, node, tensor, "Reshape", [integers(graph, f"{node.name}_inner", *kept, -1)])
        if product.columns:
            turned = [*range(batch), len(kept), *range(batch, len(kept))]
            tensor = insert_before(graph, node, tensor, "Transpose", perm=turned)
    if len(product.columns) > 1:
        shape = integers(graph, f"{node.name}_right", *[0] * (batch + 1), -1)
        return insert_before(graph, node, tensor, "Reshape", [shape])
    if product.columns:
        return tensor
    return insert_before(graph, node, tensor, "Unsqueeze", [integers(graph, f"{node.name}_column", -1)])


def _output(graph: Graph, node: Node, product: Product, sizes: list[int]) -> None:
    last = node
    for missing, axis in ((not product.columns, -1), (not product.rows, -2 if product.columns else -1)):
        if missing:
            last = insert_behind(graph, last, "Squeeze", [integers(graph, f"{node.name}_axis", axis)])
    if len(product.columns) > 1:
        kept = [0] * (len(product.made) - len(product.columns))
        last = insert_behind(graph, last, "Reshape", [integers(graph, f"{node.name}_columns", *kept, *sizes)])
    if product.made != product.output:
        insert_behind(graph, last, "Transpose", perm=[product.made.index(c) for c in product.output])


def _transposed(graph: Graph, node: Node, tensor: Tensor, old: str, new: str) -> Tensor:
    if old == new:
        return tensor
    return insert_before(graph, node, tensor, "Transpose", perm=[old.index(c) for c in new])


def _sum_alone(graph: Graph, node: Node) -> bool:
    """What is summed over in one operand alone is summed before, where that makes a product of the rest."""
    found = letters(str(node.attrs["equation"]), [rank_of(tensor) for tensor in node.inputs])
    if found is None or len(node.inputs) != 2 or any(kind_of(tensor) != "f" for tensor in node.inputs):
        return False
    operands, output = found
    alone = {c for c in "".join(operands) if "".join(operands).count(c) == 1 and c not in output}
    left, right = ("".join(c for c in part if c not in alone) for part in operands)
    if not alone or not Product(left, right, output).is_product:
        return False
    for place, (tensor, part) in enumerate(zip(node.inputs, operands)):
        if axes := [axis for axis, c in enumerate(part) if c in alone]:
            axes_of = [integers(graph, f"{node.name}_summed", *axes)]
            node.inputs[place] = insert_before(graph, node, tensor, "ReduceSum", axes_of, keepdims=0)
    node.attrs["equation"] = f"{left},{right}->{output}"
    return True


def _einsum_of_one(graph: Graph, node: Node) -> bool:
    """An equation of one operand that sums nothing is Transpose, that of a number nothing at all."""
    found = letters(str(node.attrs["equation"]), [rank_of(tensor) for tensor in node.inputs])
    if found is None or len(node.inputs) != 1:
        return False
    (old,), new = found
    if len(set(old)) != len(old) or sorted(old) != sorted(new):
        return False
    perm = [old.index(c) for c in new]
    node.op, node.attrs = ("Transpose", {"perm": perm}) if perm else ("Identity", {})
    return True


EINSUM = (
    rule("Einsum that sums in one operand", "Einsum", _sum_alone),
    rule("Einsum to MatMul", "Einsum", _einsum),
    rule("Einsum to Transpose", "Einsum", _einsum_of_one),
)
