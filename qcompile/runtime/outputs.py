"""What the outputs of a graph are, as the graph says it: what they are compared by depends on that.

Scores of classes are what a Softmax makes, what a Softmax or an ArgMax reads, and what is named logits. Other outputs
of rank 2 behind a global pool, or what stands for one, may be scores, an embedding or coordinates: there the values
decide (`looks_like_scores`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from qcompile.ir import Graph, Node, Tensor, Variable, constant_value, consumers, producer
from qcompile.ir.shapes import kind_of, rank_of


class OutputKind(StrEnum):
    """What an output holds."""

    CLASSES = "classes"  # scores of classes along an axis
    HEAD = "head"  # made like scores [N, C]: the values decide between CLASSES and VALUES
    DECISIONS = "decisions"  # numbers of classes, as an ArgMax gives them, or their names
    WHOLE = "whole"  # booleans and integers: indices, counts
    VALUES = "values"  # anything else: coordinates, embeddings, pixels and sound, these in 8 or 16 bits too


@dataclass(frozen=True)
class Output:
    """One output. `axis` is that of the classes, -1 the last; `mask` the input that says which positions count.

    The mask is of shape [N, T], like the first two dimensions of the output; where `mask_is_padding` its ones are
    padding, else its zeros.
    """

    kind: OutputKind = OutputKind.VALUES
    axis: int | None = None
    mask: str = ""
    mask_is_padding: bool = False


SOFTMAX = ("Softmax", "LogSoftmax")
DECIDING = (*SOFTMAX, "ArgMax", "Hardmax")  # their readers decide between classes
LEAVING = ("Identity", "Cast", "Log", "Dropout")  # each value stays in its place
RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
PRODUCTS = ("Gemm", "MatMul")
POOLS = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "Gather", "Slice")  # of a token, the latter
BETWEEN = (  # a global pool and the last layer
    *LEAVING, *RESHAPING, *PRODUCTS, "Conv", "Add", "Mul", "Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid",
    "Tanh", "BatchNormalization", "LayerNormalization", "Transpose",
)  # fmt: skip
FEWEST, FARTHEST = 10, 12  # classes of a head that has no name, nodes between it and the pool
LOGITS = re.compile(r"(?<![a-z])logits?(?![a-z])")
MASK = re.compile(r"(?<![a-z])masks?(?![a-z])")
# from an attention mask to the Softmax over the scores: never through Gather, the way of token and type numbers
MASKING = (
    *LEAVING, *RESHAPING, "Expand", "Tile", "Slice", "Transpose", "Concat", "Sub", "Neg", "Mul", "Div", "Add",
    "Not", "Equal", "Greater", "Less", "And", "Or", "Where", "Min", "Max",
)  # fmt: skip
ATTENTION = (*SOFTMAX, "Attention", "MultiHeadAttention")


def describe_outputs(graph: Graph, *, labelled: bool = False) -> dict[str, Output]:
    """Return what every output of `graph` is. `labelled`: there are labels, so the first one [N, C] scores classes."""
    masks = [item for item in graph.inputs if is_mask(item)]
    found = {tensor.name: with_mask(describe(tensor), tensor, masks) for tensor in graph.outputs}
    if labelled:
        named = (tensor.name for tensor in graph.outputs if rank_of(tensor) == 2 and holds_floats(tensor))
        for name in list(named)[:1]:
            found[name] = Output(OutputKind.CLASSES, 1)
    return found


def describe(tensor: Tensor) -> Output:
    """Return what one output is."""
    if is_text(tensor):
        return Output(OutputKind.DECISIONS)
    if not holds_floats(tensor):
        made = next((node for item in spine(tensor) if (node := producer(item)) and node.op == "ArgMax"), None)
        return Output(OutputKind.DECISIONS if made else OutputKind.VALUES if is_narrow(tensor) else OutputKind.WHOLE)
    axis = axis_of_classes(tensor)
    if axis is not None and size(tensor, axis) != 1:
        return Output(OutputKind.CLASSES, axis)
    classes = size(tensor, 1)
    many = not isinstance(classes, int) or classes >= FEWEST
    return Output(OutputKind.HEAD, 1) if rank_of(tensor) == 2 and many and behind_pool(tensor) else Output()


# --- scores of classes


def spine(tensor: Tensor) -> Iterator[Tensor]:
    """Yield `tensor` and those it is only another form of, back to the node that computes it."""
    yield tensor
    while (node := producer(tensor)) and node.op in (*LEAVING, *RESHAPING, "Transpose") and node.inputs:
        tensor = node.inputs[0]
        yield tensor


def axis_of_classes(output: Tensor) -> int | None:
    """Return the axis along which `output` scores classes, or None. Attention, which a MatMul reads, scores none."""
    tensors = list(spine(output))
    for place, tensor in enumerate(tensors):
        made = producer(tensor)
        deciding = [node for node in consumers(tensor) if node.op in DECIDING]
        if made and made.op in SOFTMAX:
            deciding.append(made)
        for node in deciding:
            axis = carried(axis_of(node), tensors[: place + 1])
            if axis not in (None, 0) and not feeds_product(node):
                return axis
    last = producer(tensors[-1])
    is_product = last is not None and (last.op in PRODUCTS or (last.op == "Add" and any(map(by_product, last.inputs))))
    return -1 if is_product and rank_of(output) in (2, 3) and LOGITS.search(output.name.lower()) else None


def axis_of(node: Node) -> int:
    """Return the axis of a Softmax or an ArgMax."""
    return int(node.attrs.get("axis", 0 if node.op == "ArgMax" else -1))


def carried(axis: int | None, tensors: Sequence[Tensor]) -> int | None:
    """Return where `axis` of the last of `tensors`, a spine, is in the first; None if a reshaping takes it apart."""
    for made, source in zip(reversed(tensors[:-1]), reversed(tensors[1:]), strict=True):
        node = producer(made)
        if axis is None or node is None or node.op in LEAVING:
            continue
        if node.op == "Transpose":
            order = list(node.attrs.get("perm", []))
            axis = order.index(axis % len(order)) if order else None
        else:  # what is last, but for ones behind it, stays last, unless its size says that it is another axis
            behind = (source.shape or ())[axis + 1 :] if axis != -1 else ()
            known = axis == -1 or source.shape is not None
            same = known and all(other == 1 for other in behind) and size(made, -1) == size(source, axis)
            axis = -1 if same else None
    return axis


def feeds_product(node: Node) -> bool:
    """Say whether a product reads what a Softmax makes: then it is attention."""
    readers = [reader for tensor in node.outputs for reader in consumers(tensor)]
    inner = [item for reader in readers if reader.op in (*LEAVING, *RESHAPING, "Transpose") for item in reader.outputs]
    readers += [reader for tensor in inner for reader in consumers(tensor)]
    return any(reader.op in (*PRODUCTS, "Einsum") for reader in readers)


def by_product(tensor: Tensor) -> bool:
    """Say whether a Gemm or MatMul makes `tensor`."""
    made = producer(tensor)
    return made is not None and made.op in PRODUCTS


def behind_pool(output: Tensor) -> bool:
    """Say whether `output` comes from a Gemm or MatMul not far behind a global pool, a flattened map, or one token."""
    tensors = list(spine(output))
    last = producer(tensors[-1])
    if last is not None and last.op == "Add":
        last = next((made for item in last.inputs if (made := producer(item)) and made.op in PRODUCTS), None)
    if last is None or last.op not in PRODUCTS or constant_value(last.inputs[1]) is None:
        return False
    tensor = last.inputs[0]
    for _ in range(FARTHEST):
        node = producer(tensor)
        if node is None or node.op not in (*BETWEEN, *POOLS):
            return False
        if node.op in POOLS or is_flattening(node):
            return rank_of(node.inputs[0]) in (3, 4, 5, None)
        tensor = next(item for item in node.inputs if isinstance(item, Variable))
    return False


def is_flattening(node: Node) -> bool:
    """Say whether a node makes one vector of all positions of a map or of tokens."""
    return node.op in RESHAPING and (rank_of(node.inputs[0]) or 0) > 2 and rank_of(node.outputs[0]) == 2


# --- padding


def is_mask(tensor: Tensor) -> bool:
    """Say whether an input [N, T] marks positions: named as a mask, or wired into the scores of an attention."""
    if rank_of(tensor) != 2:
        return False
    return bool(MASK.search(tensor.name.lower())) or (not holds_floats(tensor) and reaches_attention(tensor))


def reaches_attention(tensor: Tensor) -> bool:
    """Say whether `tensor` comes to a Softmax through nothing but what turns a mask into one over scores."""
    seen: set[int] = set()
    waiting = list(consumers(tensor))
    while waiting:
        node = waiting.pop()
        if node.op in ATTENTION:
            return True
        if node.op in MASKING and id(node) not in seen:
            seen.add(id(node))
            waiting += [reader for made in node.outputs for reader in consumers(made)]
    return False


def with_mask(output: Output, tensor: Tensor, masks: Sequence[Tensor]) -> Output:
    """Return `output` with the mask that fits it; of rank 2 only what is surely [N, T] has one."""
    for mask in masks:
        pairs = list(zip((tensor.shape or ())[:2], mask.shape or ()))
        differ = any(isinstance(one, int) and isinstance(two, int) and one != two for one, two in pairs)
        same = len(pairs) == 2 and isinstance(pairs[1][0], str) and pairs[1][0] == pairs[1][1]
        if len(pairs) == 2 and not differ and ((rank_of(tensor) or 0) > 2 or same or not holds_floats(tensor)):
            return Output(output.kind, output.axis, mask.name, "pad" in mask.name.lower())
    return output


# --- types and shapes


def holds_floats(tensor: Tensor) -> bool:
    """Say whether a tensor holds floats, as far as is known."""
    return kind_of(tensor) not in ("i", "u", "b")


def is_text(tensor: Tensor) -> bool:
    """Say whether a tensor holds texts."""
    return bool(tensor.dtype == np.dtype(object))


def is_narrow(tensor: Tensor) -> bool:
    """Say whether a tensor holds integers of 8 or 16 bits: pixels or sound."""
    return kind_of(tensor) in ("i", "u") and np.dtype(tensor.dtype).itemsize < 4


def size(tensor: Tensor, axis: int) -> int | str | None:
    """Return one size of a tensor as far as it is known."""
    dimensions = rank_of(tensor)
    return tensor.shape[axis] if dimensions is not None and -dimensions <= axis < dimensions else None
