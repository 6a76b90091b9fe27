"""Resize and Pad of some axes, written for all of them.

In front of integer convolutions ONNX Runtime moves to channels-last, through Resize and Pad as well; where they name
axes it permutes sizes that are not there, and the file does not run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompile.ir.graph import Constant, Graph, Node, Tensor, Variable
from qcompile.ir.rewrites import insert_before, new_constant, optional_input, rule
from qcompile.ir.shapes import rank_of, shape_of, size_of


def _pad(graph: Graph, node: Node) -> bool:
    """The pads of the other axes are 0."""
    axes, rank = optional_input(node, 3), rank_of(node.inputs[0])
    if not isinstance(axes, Constant) or rank is None:
        return False
    given = [int(axis) % rank for axis in np.ravel(axes.values)]
    node.inputs[1] = _spread(graph, node, node.inputs[1], [*given, *(rank + axis for axis in given)], [0] * 2 * rank)
    node.inputs = node.inputs[:3]
    return True


def _resize(graph: Graph, node: Node) -> bool:
    """The scale of the other axes is 1, their region of interest is all."""
    axes, rank = node.attrs.get("axes"), rank_of(node.inputs[0])
    if axes is None or rank is None:
        return False
    given = [int(axis) % rank for axis in axes]
    roi, scales = _filled(node, 1), _filled(node, 2)
    if scales is None:
        scales = _scales(graph, node, given)
    if scales is None:
        return False
    both, all_of_it = [*given, *(rank + axis for axis in given)], [0.0] * rank + [1.0] * rank
    region = Variable.empty() if roi is None else _spread(graph, node, roi, both, all_of_it)
    node.inputs = [node.inputs[0], region, _spread(graph, node, scales, given, [1.0] * rank)]
    del node.attrs["axes"]
    return True


def _leave_out(graph: Graph, node: Node) -> bool:
    """An optional input that holds nothing is one that is left out: TensorRT warns of a constant without values."""
    empty = [place for place in range(1, len(node.inputs)) if optional_input(node, place) and not _filled(node, place)]
    for place in empty:
        node.inputs[place] = Variable.empty()
    return bool(empty)


def _filled(node: Node, position: int) -> Tensor | None:
    """Return an input, or None where it is left out or holds nothing."""
    tensor = optional_input(node, position)
    return None if isinstance(tensor, Constant) and not size_of(tensor) else tensor


def _scales(graph: Graph, node: Node, axes: Sequence[int]) -> Constant | None:
    """Return the scales that give the constant sizes of `node`, where the sizes before are known and all is exact."""
    sizes, shape = _filled(node, 3), shape_of(node.inputs[0])
    if (
        not isinstance(sizes, Constant)
        or shape is None
        or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        return None
    before = [shape[axis] for axis in axes]
    numbers = np.array([dim for dim in before if isinstance(dim, int)], np.float32)
    if len(numbers) < len(axes) or not numbers.all():
        return None
    scales = np.ravel(sizes.values).astype(np.float32) / numbers
    exact = np.floor(numbers * scales) == np.ravel(sizes.values)
    return new_constant(graph, f"{node.name}_scales", scales) if exact.all() else None


def _spread(graph: Graph, node: Node, values: Tensor, places: Sequence[int], others: Sequence[float]) -> Tensor:
    """Return `others` with `values` at `places`; where they are computed as the model runs, so is this."""
    if isinstance(values, Constant):
        full: NDArray[np.generic] = np.array(others, dtype=values.values.dtype)
        full[list(places)] = np.ravel(values.values)
        return new_constant(graph, f"{values.name}_of_all", full)
    index = np.arange(len(places), len(places) + len(others))
    index[list(places)] = np.arange(len(places))
    rest = np.array(others, np.float32 if isinstance(others[0], float) else np.int64)
    joined = insert_before(graph, node, values, "Concat", [new_constant(graph, f"{node.name}_rest", rest)], axis=0)
    return insert_before(graph, node, joined, "Gather", [new_constant(graph, f"{node.name}_order", index)], axis=0)


AXES = (
    rule("pads of all axes", "Pad", _pad),
    rule("scales of all axes", "Resize", _resize),
    rule("no empty inputs", "Resize", _leave_out),
)
