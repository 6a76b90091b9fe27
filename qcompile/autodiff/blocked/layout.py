"""Between [N, C, H, W] and the blocked layout, on the tape.

A blocked value is declared [N, P, H, W], P being C filled up to a multiple of the block B; in memory it is
[N, P/B, H, W, B]. What is computed element by element does not care.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompile.autodiff.broadcasting import dims_of, sizes
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import Gradients, lowering, vjp
from qcompile.autodiff.tape import Node, Tape

NCHWC = "com.microsoft.nchwc"  # of ONNX Runtime
DOMAIN = "qcompile"  # of our own
REORDERED = 4  # ReorderInput takes multiples of so many channels


def padded(channels: int, block: int) -> int:
    """Return the number of channels with those that fill the last block."""
    return -(-channels // block) * block


def pack(g: Tape, value: Value, shape: Sequence[int], wide: int) -> Value:
    """Bring `value`, which is [N, C, H, W] as `shape` says, to the blocked layout with `wide` channels."""
    made = g.producer(value)
    if made is not None and made.op_type == "ReorderOutput":
        return str(made.input[0])
    missing = -shape[1] % REORDERED
    packed = g.op("ReorderInput", g.pad(value, [0, missing], "", [1]) if missing else value, domain=NCHWC)
    g.declare(packed, (shape[0], wide, *shape[2:]))
    return packed


def unpack(g: Tape, value: Value, shape: Sequence[int]) -> Value:
    """Bring a blocked value back to [N, C, H, W], which is `shape`."""
    made = g.producer(value)
    if made is not None and made.op_type == "ReorderInput" and not shape[1] % REORDERED:
        return str(made.input[0])
    plain = g.op("ReorderOutput", value, domain=NCHWC, channels=shape[1])
    g.declare(plain, shape)
    return plain


def view(g: Tape, value: Value, *dims: int) -> Value:
    """Look at memory as an array of other dimensions."""
    return g.reshape(value, list(dims))


def moved(g: Tape, value: Value, start: int, axis: int, rank: int) -> Value:
    """Shift along one axis of `rank`, zeros coming in: result[i] = value[i + start]."""
    if start == 0:
        return value
    pads = np.zeros((2, rank), np.int64)
    pads[:, axis] = -start, start
    return g.pad(value, pads.ravel())


def filled(g: Tape, weight: Value, sizes: Sequence[int], targets: Sequence[int]) -> Value:
    """Append zeros until the first dimensions of `weight` have the `targets` sizes."""
    missing = [target - size for size, target in zip(sizes, targets)]
    if not any(missing):
        return weight
    return g.pad(weight, [*(0 for _ in missing), *missing], "", list(range(len(missing))))


def cut(g: Tape, value: Value, sizes: Sequence[int], targets: Sequence[int]) -> Value:
    """Undo `filled`: keep the first `sizes` of the dimensions that have `targets`."""
    if list(sizes) == list(targets):
        return value
    return g.slice(value, [0] * len(sizes), list(sizes), list(range(len(sizes))))


# Pack(x), attribute block, and Unpack(x), attribute channels: the same as operators of a forward graph.


@lowering("Pack", DOMAIN)
def _write_pack(g: Tape, node: Node) -> None:
    shape = sizes(dims_of(g, node.inputs[0])) or []
    packed = pack(g, node.inputs[0], shape, padded(shape[1], int(node.attributes["block"])))
    g.identity(packed, output=node.outputs[0])


@vjp("Pack", domain=DOMAIN)
def _pack(g: Tape, node: Node, dy: Value) -> Gradients:
    return unpack(g, dy, sizes(dims_of(g, node.inputs[0])) or [])


@lowering("Unpack", DOMAIN)
def _write_unpack(g: Tape, node: Node) -> None:
    count, _, *spatial = sizes(dims_of(g, node.inputs[0])) or []
    plain = unpack(g, node.inputs[0], (count, int(node.attributes["channels"]), *spatial))
    g.identity(plain, output=node.outputs[0])


@vjp("Unpack", domain=DOMAIN)
def _unpack(g: Tape, node: Node, dy: Value) -> Gradients:
    shape, wide = sizes(dims_of(g, node.outputs[0])) or [], sizes(dims_of(g, node.inputs[0])) or []
    return pack(g, dy, shape, wide[1])
