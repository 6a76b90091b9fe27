"""Shapes in gradient graphs: constants where they are known, Shape nodes where not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompile.autodiff.operators import Operand, Value
from qcompile.autodiff.registry import UnknownFormError
from qcompile.autodiff.tape import Dim, Tape


def dims_of(g: Tape, value: Value) -> tuple[Dim, ...]:
    """Return the dimensions of a forward value, of which at least the number must be known."""
    dims = g.shape_of(value)
    if dims is None:
        raise UnknownFormError(f"the rank of {value!r} is unknown")
    return dims


def rank_of(g: Tape, value: Value) -> int:
    """Return the number of dimensions of a forward value."""
    return len(dims_of(g, value))


def sizes(dims: Sequence[Dim]) -> list[int] | None:
    """Return dimensions as numbers, or None where one is not known."""
    known = [dim for dim in dims if isinstance(dim, int)]
    return known if len(known) == len(dims) else None


def axis_of(axis: int, rank: int) -> int:
    """Return `axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def shape(g: Tape, value: Value) -> Operand:
    """Return the shape of a forward value as an int64 vector: a constant if it is known."""
    dims = g.shape_of(value)
    known = None if dims is None else sizes(dims)
    return g.shape(value) if known is None else np.array(known, np.int64)


def size_along(g: Tape, value: Value, axis: int) -> Operand:
    """Return the size of one dimension as an int64 vector of one element."""
    dim = dims_of(g, value)[axis]
    return [dim] if isinstance(dim, int) else g.shape(value, start=axis, end=axis + 1)


def reshape_like(g: Tape, value: Value, like: Value) -> Value:
    """Reshape to the shape of a forward value: one unknown dimension, such as the batch, is left to Reshape."""
    dims = g.shape_of(like)
    unknown = [] if dims is None else [dim for dim in dims if not isinstance(dim, int)]
    if dims is None or len(unknown) > 1 or (unknown and 0 in dims):
        return g.reshape(value, g.shape(like))
    return g.reshape(value, np.array([dim if isinstance(dim, int) else -1 for dim in dims], np.int64))


def zeros_like(g: Tape, value: Value) -> Value:
    """Return zeros of the shape of a forward value."""
    return g.expand(0.0, shape(g, value))


def permuted(g: Tape, value: Value, order: Sequence[int]) -> Value:
    """Transpose, unless the order is the old one."""
    return value if list(order) == list(range(len(order))) else g.transpose(value, perm=list(order))


def inverse(order: Sequence[int]) -> list[int]:
    """Return the permutation that undoes `order`."""
    return [int(place) for place in np.argsort(order)]


def broadcast_dims(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """Return the dimensions of a sum of two tensors; None where they depend on sizes that are not known."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b))
    return tuple(_broadcast_dim(x, y) for x, y in pairs)


def _broadcast_dim(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1 or (isinstance(b, int) and not isinstance(a, int)):
        return b
    return a if isinstance(a, int) else None


def unbroadcast(g: Tape, gradient: Value, dims: Sequence[Dim], like: Value) -> Value:
    """Sum `gradient`, whose dimensions are `dims`, over those along which the forward value `like` was repeated."""
    target = dims_of(g, like)
    missing = len(dims) - len(target)
    padded = (1,) * missing + target
    if any(_may_differ(size, dim) for size, dim in zip(padded, dims)):
        return _unbroadcast_at_run_time(g, gradient, missing, like)
    axes = [axis for axis, (size, dim) in enumerate(zip(padded, dims)) if axis < missing or (size == 1 and dim != 1)]
    if not axes:
        return gradient
    if axes == list(range(missing)):
        return g.reduce_sum(gradient, axes, keepdims=0)
    total = g.reduce_sum(gradient, axes, keepdims=1)
    return g.squeeze(total, list(range(missing))) if missing else total


def _may_differ(size: Dim, dim: Dim) -> bool:
    """Say whether a dimension may be 1 in the one and more in the other, and only a run will tell."""
    return not isinstance(size, int) and dim != 1 and (size is None or size != dim)


def _unbroadcast_at_run_time(g: Tape, gradient: Value, missing: int, like: Value) -> Value:
    target = g.shape(like)
    padded = g.concat(np.ones(missing, np.int64), target, axis=0) if missing else target
    axes = g.squeeze(g.nonzero(g.equal(padded, [1])), [0])
    return g.reshape(g.reduce_sum(gradient, axes, keepdims=1, noop_with_empty_axes=1), target)
