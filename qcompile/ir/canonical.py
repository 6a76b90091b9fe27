"""Rules that bring one computation, written in many ways by exporters, into the one form that targets know."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompile.ir.activations import ACTIVATIONS
from qcompile.ir.axes import AXES
from qcompile.ir.einsum import EINSUM
from qcompile.ir.graph import Constant, Graph, Node, Tensor, only_consumer, producer
from qcompile.ir.matrices import MATRICES
from qcompile.ir.rewrites import (
    constant_operand,
    insert_behind,
    new_constant,
    optional_input,
    replace_tail,
    rule,
    scalar,
)
from qcompile.ir.shapes import kind_of, rank_of, shape_of, static_dims
from qcompile.ir.simplify import broadcasts_into

# --- windows: Conv and pools


def kernel_of(node: Node) -> list[int] | None:
    """Return the kernel sizes of a convolution or pool."""
    if "kernel_shape" in node.attrs:
        return [int(k) for k in node.attrs["kernel_shape"]]
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return [int(k) for k in weight.shape[2:]] if isinstance(weight, Constant) else None


def pads_of(node: Node) -> list[int] | None:
    """Return the explicit pads of a convolution or pool (all begins, then all ends), or None where auto_pad decides."""
    kernel, mode = kernel_of(node), node.attrs.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID") or kernel is None:
        return None
    none = [0] * (2 * len(kernel))
    return [int(pad) for pad in node.attrs.get("pads", none)] if mode == "NOTSET" else none


def _explicit_kernel(graph: Graph, node: Node) -> bool:
    kernel = kernel_of(node)
    if "kernel_shape" in node.attrs or kernel is None:
        return False
    node.attrs["kernel_shape"] = kernel
    return True


def _explicit_pads(graph: Graph, node: Node) -> bool:
    """auto_pad becomes pads: VALID always, SAME where the spatial size is known or the stride is 1."""
    mode, kernel = node.attrs.get("auto_pad", "NOTSET"), kernel_of(node)
    if mode == "NOTSET":
        return node.attrs.pop("auto_pad", None) is not None
    if kernel is None or node.attrs.get("ceil_mode", 0):
        return False
    pads: Sequence[int] | None = (
        [0] * (2 * len(kernel)) if mode == "VALID" else _same_pads(node, kernel, upper=mode == "SAME_UPPER")
    )
    if pads is None:
        return False
    del node.attrs["auto_pad"]
    node.attrs["pads"] = list(pads)
    return True


def _same_pads(node: Node, kernel: list[int], *, upper: bool) -> list[int] | None:
    ones = [1] * len(kernel)
    strides, dilations = node.attrs.get("strides", ones), node.attrs.get("dilations", ones)
    sizes = (shape_of(node.inputs[0]) or [None, None, *[None] * len(kernel)])[2:]
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1 if node.op == "Conv" else k  # ONNX Runtime pads a pool as if it were not dilated
        if isinstance(size, int):
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
        elif stride == 1:
            total = reach - 1
        else:
            return None
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def _merge_pad(graph: Graph, node: Node) -> bool:
    """Pad with zeros, then Conv: the convolution pads by itself."""
    own, added = pads_of(node), _zero_pads(node.inputs[0])
    if own is None or added is None or len(added) != len(own):
        return False
    _take_pads(node, own, added)
    return True


def _merge_pad_into_pool(graph: Graph, node: Node) -> bool:
    """Pad with zeros, then AveragePool: the same if the pool counts padding, and no window is only partly inside."""
    own, added, kernel = pads_of(node), _zero_pads(node.inputs[0]), kernel_of(node)
    if own is None or added is None or kernel is None or len(added) != len(own) or node.attrs.get("ceil_mode", 0):
        return False
    counted = node.attrs.get("count_include_pad", 0) or not any(own)
    if not counted or any(a + b >= k for a, b, k in zip(own, added, kernel * 2)):  # a runtime refuses larger pads
        return False
    node.attrs["count_include_pad"] = 1
    _take_pads(node, own, added)
    return True


def _take_pads(node: Node, own: list[int], added: list[int]) -> None:
    node.attrs["pads"] = [a + b for a, b in zip(own, added)]
    node.attrs.pop("auto_pad", None)
    pad = producer(node.inputs[0])
    assert pad is not None  # added came from it
    node.inputs[0] = pad.inputs[0]


def _zero_pads(tensor: Tensor) -> list[int] | None:
    """Return the spatial pads (begins, ends) if a Pad with zeros makes `tensor` and pads nothing else."""
    node = producer(tensor)
    if node is None or node.op != "Pad" or node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 2:
        return None
    pads, value = node.inputs[1], optional_input(node, 2)
    if (
        not isinstance(pads, Constant)
        or (value is not None and scalar(value) != 0)
        or optional_input(node, 3) is not None
    ):
        return None
    full = np.asarray(pads.values).reshape(2, -1)
    return None if full[:, :2].any() or (full < 0).any() else [int(pad) for pad in full[:, 2:].ravel()]


# --- pools over the whole map


def _reduce_mean(graph: Graph, node: Node) -> bool:
    """The mean over H and W is GlobalAveragePool, and Flatten where the reduced dimensions go."""
    axes = optional_input(node, 1)
    given = (
        np.ravel(axes.values) if isinstance(axes, Constant) else None if axes is not None else node.attrs.get("axes")
    )
    if given is None or rank_of(node.inputs[0]) != 4 or kind_of(node.inputs[0]) != "f":
        return False
    if sorted(int(axis) % 4 for axis in given) != [2, 3]:
        return False
    keepdims = node.attrs.get("keepdims", 1)
    node.op, node.attrs = "GlobalAveragePool", {}
    node.inputs = [node.inputs[0]]
    if not keepdims:
        insert_behind(graph, node, "Flatten", axis=1)
    return True


def _pool_over_everything(graph: Graph, node: Node) -> bool:
    size, kernel = static_dims(node.inputs[0], 2), kernel_of(node)
    if (
        size is None
        or size != kernel
        or any(pads_of(node) or [1])
        or any(d != 1 for d in node.attrs.get("dilations", []))
    ):
        return False
    node.op, node.attrs = "GlobalAveragePool", {}
    return True


# --- Gemm


def _matmul_to_gemm(graph: Graph, node: Node) -> bool:
    """MatMul of rank 2 with a constant weight, then Add of a constant row, is Gemm."""
    matmul, add, bias = node, only_consumer(graph, node.outputs[0]), None
    if add is not None and add.op == "Add" and (pair := constant_operand(add)):
        bias = pair[1]
    weight = matmul.inputs[1]
    if (
        bias is None
        or add is None
        or rank_of(matmul.inputs[0]) != 2
        or not isinstance(weight, Constant)
        or len(weight.shape) != 2
    ):
        return False
    row = as_row(bias, int(weight.shape[1]))
    if row is None:
        return False
    matmul.op, matmul.attrs = "Gemm", {}
    matmul.inputs.append(new_constant(graph, f"{matmul.name}_bias", row))
    replace_tail(matmul, add)
    return True


def _bias_of_full_rank(graph: Graph, node: Node) -> bool:
    """Give the bias behind a MatMul of rank 3 or more that rank: ONNX Runtime makes Gemm of MatMul and a row.

    It does so before it looks for integer kernels, and a Gemm without a quantizer behind it is float.
    """
    pair = constant_operand(node)
    matmul = producer(pair[0]) if pair else None
    rank = rank_of(node.outputs[0])
    if pair is None or matmul is None or matmul.op != "MatMul" or rank is None or rank < 3 or len(pair[1].shape) != 1:
        return False
    row = np.asarray(pair[1].values)
    wide = new_constant(graph, f"{pair[1].name}_row", row.reshape((1,) * (rank - 1) + row.shape))
    node.inputs = [wide if tensor is pair[1] else tensor for tensor in node.inputs]
    return True


def as_row(bias: Constant, count: int) -> np.ndarray | None:
    """Return a bias that is the same for every row as an array [count], else None."""
    shape = [int(dim) for dim in bias.shape]
    if len(shape) > 2 or shape[:-1] not in ([], [1]) or (shape and shape[-1] not in (1, count)):
        return None
    return np.broadcast_to(np.asarray(bias.values).reshape(-1), (count,))


def _plain_gemm(graph: Graph, node: Node) -> bool:
    """alpha goes into a constant weight, beta into a constant bias, and the bias becomes [N]."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    weight, bias = node.inputs[1], optional_input(node, 2)
    changed = False
    if alpha != 1 and isinstance(weight, Constant):
        node.inputs[1] = new_constant(graph, f"{weight.name}_scaled", _times(weight, alpha))
        changed = True
        node.attrs["alpha"] = 1.0
    if bias is None:
        if beta != 1:
            node.attrs["beta"], changed = 1.0, True
        return changed
    row = None
    if isinstance(bias, Constant) and isinstance(weight, Constant):
        row = as_row(bias, int(weight.shape[0 if node.attrs.get("transB", 0) else 1]))
    if row is None or (beta == 1 and list(bias.shape) == list(row.shape)):
        return changed
    node.inputs[2] = new_constant(graph, f"{bias.name}_row", (row.astype(np.float64) * beta).astype(row.dtype))
    node.attrs["beta"] = 1.0
    return True


def _times(constant: Constant, factor: float) -> np.ndarray:
    values = np.asarray(constant.values)
    return np.asarray((values.astype(np.float64) * factor).astype(values.dtype))


# --- chains of constant Mul and Add


def _add_for_sub(graph: Graph, node: Node) -> bool:
    """x - c is x + (-c): exact, and Sub has no integer kernel anywhere."""
    pair = _float_pair(node)
    if pair is None or pair[0] is not node.inputs[0]:
        return False
    node.op = "Add"
    node.inputs[1] = new_constant(graph, f"{pair[1].name}_negated", -np.asarray(pair[1].values))
    return True


def _mul_for_div(graph: Graph, node: Node) -> bool:
    """x / c is x * (1/c) to one rounding; Div has no integer kernel anywhere. In front of Erf it is part of Gelu."""
    pair, behind = _float_pair(node), only_consumer(graph, node.outputs[0])
    if pair is None or pair[0] is not node.inputs[0] or (behind is not None and behind.op == "Erf"):
        return False
    with np.errstate(all="ignore"):
        inverse = (1 / np.asarray(pair[1].values).astype(np.float64)).astype(pair[1].dtype)
    if not np.isfinite(inverse).all() or not (np.abs(inverse) >= np.finfo(inverse.dtype).tiny).all():
        return False
    node.op = "Mul"
    node.inputs[1] = new_constant(graph, f"{pair[1].name}_inverse", inverse)
    return True


def _merge_chain(graph: Graph, node: Node) -> bool:
    """(x * a) * b is x * ab, (x + a) + b is x + (a + b)."""
    pair = _float_pair(node)
    first = producer(pair[0]) if pair else None
    before = _float_pair(first) if first is not None and first.op == node.op else None
    if pair is None or before is None or only_consumer(graph, pair[0]) is None:
        return False
    a, b = (np.asarray(item[1].values).astype(np.float64) for item in (before, pair))
    merged = (a * b if node.op == "Mul" else a + b).astype(pair[1].dtype)
    if merged.size > max(a.size, b.size) or not np.isfinite(merged).all():
        return False
    node.inputs = [before[0], new_constant(graph, f"{pair[1].name}_merged", merged)]
    return True


def _mul_first(graph: Graph, node: Node) -> bool:
    """(x + a) * b is x * b + ab: done where a Mul in front or an Add behind can then merge with it."""
    pair = _float_pair(node)
    add = producer(pair[0]) if pair else None
    before = _float_pair(add) if add is not None and add.op == "Add" else None
    if pair is None or add is None or before is None or only_consumer(graph, pair[0]) is None:
        return False
    front, behind = producer(before[0]), only_consumer(graph, node.outputs[0])
    merges_front = (
        front is not None and front.op == "Mul" and constant_operand(front) and only_consumer(graph, before[0])
    )
    merges_behind = behind is not None and behind.op == "Add" and constant_operand(behind)
    data, factor = before[0], pair[1]
    a, b = (np.asarray(item[1].values).astype(np.float64) for item in (before, pair))
    shift = (a * b).astype(factor.dtype)
    fits = broadcasts_into(before[1], data) and broadcasts_into(factor, data) and np.isfinite(shift).all()
    if not (merges_front or merges_behind) or not fits:
        return False
    add.op, node.op = "Mul", "Add"
    add.inputs = [data, factor]
    node.inputs = [add.outputs[0], new_constant(graph, f"{factor.name}_shift", shift)]
    return True


def _float_pair(node: Node) -> tuple[Tensor, Constant] | None:
    pair = constant_operand(node)
    return pair if pair and kind_of(pair[1]) == "f" else None


CANONICAL = (
    *AXES,
    *EINSUM,
    *MATRICES,
    rule("kernel size written", "Conv ConvTranspose", _explicit_kernel),
    rule("automatic padding resolved", "Conv AveragePool MaxPool", _explicit_pads),
    rule("pad merged into convolution", "Conv", _merge_pad),
    rule("pad merged into pool", "AveragePool", _merge_pad_into_pool),
    rule("mean to global pool", "ReduceMean", _reduce_mean),
    rule("average pool to global pool", "AveragePool", _pool_over_everything),
    rule("MatMul and Add to Gemm", "MatMul", _matmul_to_gemm),
    rule("MatMul bias of full rank", "Add", _bias_of_full_rank),
    rule("Gemm factors folded", "Gemm", _plain_gemm),
    *ACTIVATIONS,
    rule("Sub to Add", "Sub", _add_for_sub),
    rule("Div to Mul", "Div", _mul_for_div),
    rule("constants merged", "Add Mul", _merge_chain),
    rule("Mul moved before Add", "Mul", _mul_first),
)
