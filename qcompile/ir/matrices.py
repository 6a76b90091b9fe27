"""MatMul with constants brought to one with a matrix on its right: integer kernels take no other weight."""

from __future__ import annotations

import numpy as np

from qcompile.ir.graph import Constant, Graph, Node, Tensor
from qcompile.ir.rewrites import insert_before, insert_behind, integers, new_constant, rule
from qcompile.ir.shapes import kind_of, rank_of, shape_of

MOST_PARTS = 16  # products in the place of one with a stack of matrices
LEAST_PART = 1024  # weights of each: below it splitting takes longer than it saves


def _vector(graph: Graph, node: Node) -> bool:
    """x times a constant vector is x times a matrix of one column, whose dimension goes again."""
    weight = _weight(node)
    if weight is None or len(weight.shape) != 1:
        return False
    node.inputs[1] = new_constant(graph, f"{weight.name}_column", np.asarray(weight.values)[:, None])
    insert_behind(graph, node, "Squeeze", [integers(graph, f"{node.name}_axis", -1)])
    return True


def _leading_ones(graph: Graph, node: Node) -> bool:
    """Leading dimensions of size 1 go; where the data has fewer, they are put behind the product."""
    weight, rank = _weight(node), rank_of(node.inputs[0])
    if weight is None or rank is None or len(weight.shape) < 3 or int(weight.shape[0]) != 1:
        return False
    node.inputs[1] = new_constant(graph, f"{weight.name}_stack", np.asarray(weight.values)[0])
    if rank < len(weight.shape):
        insert_behind(graph, node, "Unsqueeze", [integers(graph, f"{node.name}_axis", 0)])
    return True


def _stack_side_by_side(graph: Graph, node: Node) -> bool:
    """The same rows times a stack of matrices is one product with all their columns, turned afterwards."""
    weight, shape = _weight(node), shape_of(node.inputs[0])
    stack = len(weight.shape) - 2 if weight is not None else 0
    if weight is None or shape is None or stack < 1 or int(weight.shape[0]) == 1:
        return False
    repeated = shape[:-2][-stack:]
    outer = len(shape) - 2 - len(repeated)
    if any(dim != 1 for dim in repeated):
        return False
    values = np.moveaxis(np.asarray(weight.values), -2, 0)
    node.inputs[1] = new_constant(graph, f"{weight.name}_columns", values.reshape(len(values), -1))
    last = node
    if repeated:
        axes = integers(graph, f"{node.name}_axes", *range(outer, outer + len(repeated)))
        last = insert_behind(graph, last, "Squeeze", [axes])
    sizes = integers(graph, f"{node.name}_sizes", *[0] * (outer + 1), *values.shape[1:])
    last = insert_behind(graph, last, "Reshape", [sizes])
    turned = [*range(outer), *range(outer + 1, outer + 1 + stack), outer, outer + 1 + stack]
    insert_behind(graph, last, "Transpose", perm=turned)
    return True


def _stack_apart(graph: Graph, node: Node) -> bool:
    """A stack of matrices, each for rows of its own, is one product for each, joined afterwards."""
    weight, shape = _weight(node), shape_of(node.inputs[0])
    if weight is None or shape is None or len(weight.shape) != 3 or len(shape) < 3 or shape[-3] != weight.shape[0]:
        return False
    count, size = int(weight.shape[0]), int(weight.shape[1]) * int(weight.shape[2])
    if count > MOST_PARTS or size < LEAST_PART:
        return False
    axis, source = len(shape) - 3, node.inputs[0]
    made: list[Tensor] = []
    for matrix, number in zip(np.asarray(weight.values), range(count)):
        bounds = [
            integers(graph, f"{node.name}_{name}", value)
            for name, value in (("from", number), ("to", number + 1), ("axis", axis))
        ]
        rows = insert_before(graph, node, source, "Slice", bounds)
        matrices = [new_constant(graph, f"{weight.name}_matrix", matrix)]
        made.append(insert_before(graph, node, rows, "MatMul", matrices))
    node.op, node.attrs, node.inputs = "Concat", {"axis": axis}, made
    return True


def _constant_on_the_left(graph: Graph, node: Node) -> bool:
    """A constant matrix times x is x turned times the matrix turned, turned back: a weight stands on the right."""
    matrix, data = node.inputs
    rank = rank_of(data)
    if not isinstance(matrix, Constant) or isinstance(data, Constant) or kind_of(matrix) != "f":
        return False
    if len(matrix.shape) != 2 or rank is None or rank < 2:
        return False
    turn = [*range(rank - 2), rank - 1, rank - 2]
    turned = new_constant(graph, f"{matrix.name}_turned", np.asarray(matrix.values).T)
    node.inputs = [insert_before(graph, node, data, "Transpose", perm=turn), turned]
    insert_behind(graph, node, "Transpose", perm=turn)
    return True


def _weight(node: Node) -> Constant | None:
    """Return the constant right operand of a product of floats whose left operand is a tensor of rank 2 or more."""
    left, right = node.inputs
    rank = rank_of(left)
    if not isinstance(right, Constant) or isinstance(left, Constant) or kind_of(right) != "f":
        return None
    return right if rank is not None and rank > 1 else None


MATRICES = (
    rule("MatMul with a vector", "MatMul", _vector),
    rule("MatMul with leading ones", "MatMul", _leading_ones),
    rule("MatMul with a stack of matrices side by side", "MatMul", _stack_side_by_side),
    rule("MatMul with a stack of matrices taken apart", "MatMul", _stack_apart),
    rule("MatMul with a constant on its left", "MatMul", _constant_on_the_left),
)
