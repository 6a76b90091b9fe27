"""Products of matrices."""

from __future__ import annotations

from qcompile.autodiff.broadcasting import broadcast_dims, dims_of, reshape_like, unbroadcast
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, attribute, vjp
from qcompile.autodiff.tape import Dim, Node, Tape


@vjp("Gemm")
def _gemm(g: Tape, node: Node, dy: Value) -> Gradients:
    """With y = alpha a b + beta c: da = alpha dy b', db = alpha a' dy, dc = beta dy summed to the shape of c."""
    a, b, c = node.inputs[0], node.inputs[1], node.input(2)
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    flip_a, flip_b = attribute(node, "transA", 0), attribute(node, "transB", 0)
    da = (
        g.gemm(b, dy, alpha=alpha, transA=flip_b, transB=1) if flip_a else g.gemm(dy, b, alpha=alpha, transB=1 - flip_b)
    )
    db = (
        g.gemm(dy, a, alpha=alpha, transA=1, transB=flip_a) if flip_b else g.gemm(a, dy, alpha=alpha, transA=1 - flip_a)
    )
    if not c:
        return da, db
    scaled = dy if beta == 1 else g.mul(dy, beta)
    rows, columns = dims_of(g, a)[flip_a], dims_of(g, b)[1 - flip_b]
    return da, db, unbroadcast(g, scaled, (rows, columns), c)


@vjp("MatMul")
def _matmul(g: Tape, node: Node, dy: Value) -> Gradients:
    """da = dy b' and db = a' dy, summed over broadcast batch dimensions; a vector is a matrix of one row or column."""
    a, b = node.inputs
    rows, columns = dims_of(g, a), dims_of(g, b)
    left, right, middle = a, b, dy
    if len(rows) == 1:
        left, rows, middle = g.unsqueeze(a, [0]), (1, *rows), g.unsqueeze(middle, [-1 if len(columns) == 1 else -2])
    if len(columns) == 1:
        right, columns, middle = g.unsqueeze(b, [1]), (*columns, 1), g.unsqueeze(middle, [-1])
    batch = broadcast_dims(rows[:-2], columns[:-2])
    da = g.matmul(middle, transposed(g, right, len(columns)))
    if len(columns) == 2 and len(rows) > 2:  # one weight for a batch of matrices: one product over all rows
        flat = [g.flatten(matrix, axis=len(rows) - 1) for matrix in (left, middle)]
        return da, reshape_like(g, g.gemm(*flat, transA=1), b)
    db = g.matmul(transposed(g, left, len(rows)), middle)
    return _fit(g, da, (*batch, *rows[-2:]), a), _fit(g, db, (*batch, *columns[-2:]), b)


def transposed(g: Tape, matrix: Value, rank: int) -> Value:
    """Swap the last two dimensions."""
    return g.transpose(matrix, perm=[*range(rank - 2), rank - 1, rank - 2])


def _fit(g: Tape, gradient: Value, dims: tuple[Dim, ...], like: Value) -> Value:
    """Sum over broadcast batches; a vector loses the dimension it was given."""
    if len(dims_of(g, like)) > 1:
        return unbroadcast(g, gradient, dims, like)
    batches = list(range(len(dims) - 2))
    return reshape_like(g, g.reduce_sum(gradient, batches, keepdims=0) if batches else gradient, like)
