"""Operators that give the same elements another shape or another order."""

from __future__ import annotations

from qcompile.autodiff.broadcasting import (
    axis_of,
    dims_of,
    inverse,
    rank_of,
    reshape_like,
    shape,
    size_along,
    sizes,
    unbroadcast,
    zeros_like,
)
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, UnknownFormError, attribute, vjp
from qcompile.autodiff.tape import Node, Tape


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _reshaped(g: Tape, node: Node, dy: Value) -> Gradients:
    """The same elements in the old shape."""
    return (reshape_like(g, dy, node.inputs[0]),)


@vjp("Transpose")
def _transpose(g: Tape, node: Node, dy: Value) -> Gradients:
    """The inverse permutation."""
    order = attribute(node, "perm", list(range(rank_of(g, node.inputs[0])))[::-1])
    return g.transpose(dy, perm=inverse(order)) if order else dy


@vjp("Concat")
def _concat(g: Tape, node: Node, dy: Value) -> Gradients:
    """Each input receives its piece of dy."""
    axis = axis_of(node.attributes["axis"], rank_of(g, node.outputs[0]))
    lengths = [size_along(g, part, axis) for part in node.inputs]
    known = sizes([dims_of(g, part)[axis] for part in node.inputs])
    split = known if known is not None else g.concat(*lengths, axis=0)
    return g.ops("Split", dy, split, outputs=len(node.inputs), axis=axis)


@vjp("Split")
def _split(g: Tape, node: Node, *above: Value | None) -> Gradients:
    """The pieces in one tensor again; a piece that nobody read is zero."""
    parts = [dy or zeros_like(g, piece) for dy, piece in zip(above, node.outputs)]
    return g.concat(*parts, axis=attribute(node, "axis", 0)), None


@vjp("Expand")
def _expand(g: Tape, node: Node, dy: Value) -> Gradients:
    """The sum over the copies."""
    return unbroadcast(g, dy, dims_of(g, node.outputs[0]), node.inputs[0]), None


@vjp("Tile")
def _tile(g: Tape, node: Node, dy: Value) -> Gradients:
    """The sum over the copies: dy as [copies, size] per dimension, summed over every first."""
    x, copies = node.inputs
    rank = rank_of(g, x)
    pairs = [g.unsqueeze(copies, [1]), g.unsqueeze(shape(g, x), [1])]
    parts = g.reshape(dy, g.reshape(g.concat(*pairs, axis=1), [2 * rank]))
    return g.reduce_sum(parts, list(range(0, 2 * rank, 2)), keepdims=0), None


@vjp("DepthToSpace")
def _depth_to_space(g: Tape, node: Node, dy: Value) -> Gradients:
    """SpaceToDepth puts the block in front of the channels (mode DCR); CRD has it behind."""
    block = int(node.attributes["blocksize"])
    blocks = g.space_to_depth(dy, blocksize=block)
    if attribute(node, "mode", "DCR") == "DCR":
        return blocks
    channels = dims_of(g, node.outputs[0])[1]
    if not isinstance(channels, int):
        raise UnknownFormError("the number of channels is unknown")
    parts = g.reshape(blocks, [0, block * block, channels, -1])
    return reshape_like(g, g.transpose(parts, perm=[0, 2, 1, 3]), node.inputs[0])


@vjp("SpaceToDepth")
def _space_to_depth(g: Tape, node: Node, dy: Value) -> Gradients:
    """DepthToSpace of mode DCR is its inverse."""
    return g.depth_to_space(dy, blocksize=node.attributes["blocksize"])
