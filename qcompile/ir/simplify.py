"""Rules that remove what does nothing and make dynamic shapes constant."""

from __future__ import annotations

import numpy as np
import onnx

from qcompile.ir.branches import inline_branch
from qcompile.ir.graph import Constant, Graph, Node, Tensor, is_output, replace_uses
from qcompile.ir.loops import unroll
from qcompile.ir.rewrites import bypass, constant_operand, insert_before, new_constant, optional_input, rule, scalar
from qcompile.ir.shapes import Dim, kind_of, known_integers, rank_of, shape_of, size_of

SMALL = 256  # elements; equal constants up to this size become one


def _identity(graph: Graph, node: Node) -> bool:
    return bypass(graph, node)


def _dropout(graph: Graph, node: Node) -> bool:
    training = optional_input(node, 2)
    if training is not None and scalar(training) != 0:
        return False
    masks = node.outputs[1:]
    return not any(mask.outputs or is_output(graph, mask) for mask in masks) and bypass(graph, node)


def _cast(graph: Graph, node: Node) -> bool:
    dtype = node.inputs[0].dtype
    same = (
        dtype is not None
        and not isinstance(dtype, int)
        and node.attrs["to"] == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    )
    return same and bypass(graph, node)


def _cast_like(graph: Graph, node: Node) -> bool:
    """CastLike is a Cast where the type is known."""
    dtype = node.inputs[1].dtype
    if dtype is None or isinstance(dtype, int):
        return False
    node.op, node.inputs = "Cast", node.inputs[:1]
    node.attrs = {**node.attrs, "to": int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))}
    return True


def _transpose(graph: Graph, node: Node) -> bool:
    perm = node.attrs.get("perm")
    return perm is not None and list(perm) == sorted(perm) and bypass(graph, node)


def _pad(graph: Graph, node: Node) -> bool:
    pads = node.inputs[1] if len(node.inputs) > 1 else None
    return isinstance(pads, Constant) and not np.any(pads.values) and bypass(graph, node)


def _slice(graph: Graph, node: Node) -> bool:
    shape = shape_of(node.inputs[0])
    bounds = [None if not tensor.name else tensor for tensor in node.inputs[1:]]
    if shape is None or len(bounds) < 2 or any(not isinstance(b, Constant) for b in bounds if b is not None):
        return False
    starts, ends, axes, steps = [
        None if b is None else np.asarray(b.values).ravel().tolist() for b in (*bounds, None, None)[:4]
    ]
    for position, (start, end) in enumerate(zip(starts or [], ends or [])):
        dim = shape[axes[position] if axes else position]
        whole = start == 0 and (steps is None or steps[position] == 1)
        if not whole or end < (dim if isinstance(dim, int) else np.iinfo(np.int32).max):
            return False
    return bypass(graph, node)


def _neutral(graph: Graph, node: Node) -> bool:
    """x + 0, x - 0, x * 1, x / 1, where the constant does not broadcast x to a larger shape."""
    pair = constant_operand(node)
    neutral = 0 if node.op in ("Add", "Sub") else 1
    if pair is None or (node.op in ("Sub", "Div") and pair[0] is not node.inputs[0]):
        return False
    data, constant = pair
    if not kind_of(constant) or not np.all(constant.values == neutral) or not broadcasts_into(constant, data):
        return False
    return bypass(graph, node, data)


def broadcasts_into(constant: Constant, data: Tensor) -> bool:
    """Say whether combining `data` with `constant` certainly keeps the shape of `data`."""
    if size_of(constant) == 1 and len(constant.shape) <= 1:
        return len(constant.shape) == 0 or rank_of(data) != 0
    shape = shape_of(data)
    if shape is None or len(constant.shape) > len(shape):
        return False
    return all(dim in (1, own) for dim, own in zip(reversed([int(d) for d in constant.shape]), reversed(shape)))


def _boundless_clip(graph: Graph, node: Node) -> bool:
    return not any(tensor.name for tensor in node.inputs[1:]) and bypass(graph, node)


def _single(graph: Graph, node: Node) -> bool:
    return len(node.inputs) == 1 and bypass(graph, node)


def _empty_operands(graph: Graph, node: Node) -> bool:
    """What has no values along the axis of a Concat (a cache before the first step) adds nothing to it."""
    shapes = [shape_of(tensor) for tensor in node.inputs]
    axis = node.attrs["axis"]
    kept = [tensor for tensor, shape in zip(node.inputs, shapes) if shape is None or shape[axis] != 0]
    if len(kept) == len(shapes) or not kept:
        return False
    node.inputs = kept
    return True


def _numbers_of_range(graph: Graph, node: Node) -> bool:
    """Lists of one number become numbers: the kernel of Range takes both, shape inference only these."""
    lists = [place for place, tensor in enumerate(node.inputs) if rank_of(tensor) == 1]
    for place in lists:
        tensor = node.inputs[place]
        if isinstance(tensor, Constant):
            node.inputs[place] = new_constant(graph, f"{tensor.name}_number", np.asarray(tensor.values).reshape(()))
        else:
            node.inputs[place] = insert_before(graph, node, tensor, "Squeeze")
    return bool(lists)


# --- Reshape


def _constant_shape(graph: Graph, node: Node) -> bool:
    """A shape computed at run time becomes a constant where every dimension but one is known or copied."""
    target, shape = known_integers(node.inputs[1]), shape_of(node.inputs[0]) or []
    if isinstance(node.inputs[1], Constant) or target is None or (node.attrs.get("allowzero", 0) and 0 in target):
        return False
    dims = [_static_or_copied(dim, shape[i] if i < len(shape) else None) for i, dim in enumerate(target)]
    if dims.count(-1) > 1:
        return False
    node.inputs[1] = new_constant(graph, f"{node.outputs[0].name}_shape", np.array(dims, dtype=np.int64))
    node.attrs["allowzero"] = 0
    return True


def _static_or_copied(dim: Dim, own: Dim) -> int:
    if isinstance(dim, int):
        return dim
    return 0 if dim is not None and dim == own else -1


def _target(node: Node) -> list[int] | None:
    """Return the constant shape of a Reshape in which 0 copies a dimension."""
    if not isinstance(node.inputs[1], Constant):
        return None
    dims = [int(dim) for dim in node.inputs[1].values]
    return None if node.attrs.get("allowzero", 0) and 0 in dims else dims


def _useless_reshape(graph: Graph, node: Node) -> bool:
    target, shape = _target(node), shape_of(node.inputs[0])
    if target is None or shape is None or len(target) != len(shape):
        return False
    open_dims = [i for i, dim in enumerate(target) if dim == -1]
    same = all(dim in (0, own) for i, (dim, own) in enumerate(zip(target, shape)) if i not in open_dims)
    if not same or len(open_dims) > 1:
        return False
    return bypass(graph, node)


def _flatten(graph: Graph, node: Node) -> bool:
    """Reshape [N, a, b, ...] -> [N, a*b*...] is Flatten, which integer kernels know how to look through."""
    target, shape = _target(node), shape_of(node.inputs[0])
    if target is None or shape is None or len(target) != 2 or len(shape) < 3:
        return False
    rest = [dim for dim in shape[1:] if isinstance(dim, int)]
    product = int(np.prod(rest)) if len(rest) == len(shape) - 1 else None
    first_kept = target[0] == 0 or (isinstance(shape[0], int) and target[0] == shape[0])
    kept = (first_kept and target[1] in (-1, product)) or (target[0] == -1 and target[1] == product and product)
    if not kept:
        return False
    node.op, node.attrs = "Flatten", {"axis": 1}
    node.inputs = [node.inputs[0]]
    return True


def _useless_flatten(graph: Graph, node: Node) -> bool:
    return node.attrs.get("axis", 1) == 1 and rank_of(node.inputs[0]) == 2 and bypass(graph, node)


def merge_equal_constants(graph: Graph) -> int:
    """Let equal small constants be one; return how many went. Hashing large ones costs more than it gives."""
    first: dict[tuple[object, ...], Constant] = {}
    merged = 0
    for tensor in list(graph.tensors().values()):
        if (
            not isinstance(tensor, Constant)
            or not kind_of(tensor)
            or is_output(graph, tensor)
            or size_of(tensor) > SMALL
        ):
            continue
        values = np.asarray(tensor.values)
        kept = first.setdefault((values.dtype, values.shape, values.tobytes()), tensor)
        if kept is not tensor:
            replace_uses(graph, tensor, kept)
            merged += 1
    return merged


SIMPLIFY = (
    rule("branch inlined", "If", inline_branch),
    rule("loop unrolled", "Loop", unroll),
    rule("identity removed", "Identity", _identity),
    rule("dropout removed", "Dropout", _dropout),
    rule("CastLike to Cast", "CastLike", _cast_like),
    rule("no-op cast removed", "Cast", _cast),
    rule("no-op transpose removed", "Transpose", _transpose),
    rule("no-op pad removed", "Pad", _pad),
    rule("no-op slice removed", "Slice", _slice),
    rule("neutral constant removed", "Add Sub Mul Div", _neutral),
    rule("empty operand removed", "Concat", _empty_operands),
    rule("single operand removed", "Concat Sum Max Min", _single),
    rule("clip without bounds removed", "Clip", _boundless_clip),
    rule("numbers of a range", "Range", _numbers_of_range),
    rule("constant shape", "Reshape", _constant_shape),
    rule("no-op reshape removed", "Reshape", _useless_reshape),
    rule("reshape to flatten", "Reshape", _flatten),
    rule("no-op flatten removed", "Flatten", _useless_flatten),
)
