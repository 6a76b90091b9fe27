"""Shapes of tensors, and the integers that exporters compute from them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_graphsurgeon.ir.tensor import SparseValues  # noqa: TID251  (the one door)

from qcompile.ir.graph import Constant, Graph, Node, Tensor, Variable, is_standard, producer
from qcompile.ir.load import to_model
from qcompile.ir.protos import LARGE

Dim = int | str | None  # a size, a symbol (equal symbols are equal sizes), or unknown
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[ModelProto, Arrays], Arrays]

GENERATED = re.compile(r"unk__\d+")  # symbols that ONNX shape inference invents
FEW = 64  # elements; more than that is no shape


def shape_of(tensor: Tensor) -> list[Dim] | None:
    """Return the dimensions of `tensor`, or None where not even the rank is known."""
    if isinstance(tensor, Constant):
        return [int(dim) for dim in tensor.shape]
    if tensor.shape is None:
        return None
    return [
        int(dim) if isinstance(dim, int) and dim >= 0 else dim if isinstance(dim, str) and dim else None
        for dim in tensor.shape
    ]


def static_dims(tensor: Tensor, start: int = 0) -> list[int] | None:
    """Return the dimensions from `start` on if all of them are known numbers, else None."""
    shape = shape_of(tensor)
    dims = None if shape is None else [dim for dim in shape[start:] if isinstance(dim, int)]
    return dims if shape is not None and dims is not None and len(dims) == len(shape[start:]) else None


def rank_of(tensor: Tensor) -> int | None:
    """Return the number of dimensions, or None where it is unknown."""
    shape = shape_of(tensor)
    return None if shape is None else len(shape)


def kind_of(tensor: Tensor) -> str:
    """Return numpy's letter for the type of numbers, "f", "i", "u" or "b"; "" for unknown and other types."""
    if (
        tensor.dtype is None
        or isinstance(tensor.dtype, int)
        or isinstance(getattr(tensor, "_values", None), SparseValues)
    ):
        return ""
    kind = np.dtype(tensor.dtype).kind
    return kind if kind in "fiub" else ""


def size_of(constant: Constant) -> int:
    """Return the number of elements of a constant."""
    return int(np.prod([int(dim) for dim in constant.shape], dtype=np.int64))


@contextmanager
def outline(graph: Graph) -> Iterator[ModelProto]:
    """Lend `graph` as a model whose large weights are inputs: small enough to serialise, nothing copied."""
    large: list[Any] = [
        t for t in graph.tensors().values() if isinstance(t, Constant) and kind_of(t) and size_of(t) > LARGE
    ]
    kept = [(tensor._values, tensor._export_dtype) for tensor in large]
    inputs: list[Any] = list(graph.inputs)
    for tensor in large:
        tensor.to_variable(tensor.export_dtype, list(tensor.shape))
        tensor.type = "tensor_type"  # a constant has none
    graph.inputs = [*inputs, *large]
    try:
        yield to_model(graph)
    finally:
        graph.inputs = inputs
        for tensor, (values, export_dtype) in zip(large, kept):
            tensor.to_constant(values, export_dtype=export_dtype)


def infer_shapes(graph: Graph) -> None:
    """Fill types and shapes of the tensors of `graph` from its inputs; what cannot be inferred stays as it is."""
    for tensor in variables(graph):
        if tensor.shape is not None:  # an invented symbol would win over the name or number found now
            tensor.shape = [None if isinstance(dim, str) and GENERATED.fullmatch(dim) else dim for dim in tensor.shape]
    with outline(graph) as model:
        infos = _inferred(model)
    for tensor in variables(graph):
        if info := infos.get(tensor.name):
            if info.elem_type and tensor.dtype is None:
                tensor.dtype = onnx.helper.tensor_dtype_to_np_dtype(info.elem_type)
            if info.HasField("shape"):
                tensor.shape = [
                    dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in info.shape.dim
                ]


def sizes_for(graph: Graph, inputs: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Return the shapes of the tensors of `graph`, as far as ONNX knows them, where its inputs have these shapes."""
    with outline(graph) as model:
        del model.graph.value_info[:]  # the symbols of before would win over numbers
        for info in model.graph.output:
            info.type.tensor_type.ClearField("shape")
        for info in model.graph.input:
            for dim, size in zip(info.type.tensor_type.shape.dim, inputs.get(info.name, ())):
                dim.dim_value = size
        shapes = {name: info.shape.dim for name, info in _inferred(model).items() if info.HasField("shape")}
    return {
        name: [dim.dim_value for dim in dims]
        for name, dims in shapes.items()
        if all(dim.HasField("dim_value") for dim in dims)
    }


def _inferred(model: ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return what ONNX finds out about the tensors that nodes make; nothing where it does not know an operator."""
    inferred = ModelProto()
    with suppress(Exception):
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = [*inferred.graph.value_info, *inferred.graph.output]
    return {info.name: info.type.tensor_type for info in found if info.type.HasField("tensor_type")}


def variables(graph: Graph) -> list[Variable]:
    """Return the tensors that the nodes of `graph` make."""
    return [tensor for node in graph.nodes for tensor in node.outputs if isinstance(tensor, Variable) and tensor.name]


def trace_shapes(graph: Graph, run: Run, feeds: Sequence[Arrays]) -> int:
    """Fill types and shapes of tensors whose rank is unknown by running the model; return how many were filled.

    `run(model, feeds)` runs it once. A rank is taken from the first run. A dimension is taken as a number only if all
    inputs are static, or if several `feeds` agree on it although every dynamic input dimension differs between them.
    """
    unknown = [tensor for tensor in variables(graph) if tensor.shape is None]
    if not unknown:
        return 0
    model = to_model(graph)
    given = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t.name) for t in unknown if t.name not in given)
    runs = [
        {name: (array.shape, array.dtype) for name, array in run(model, feed).items() if isinstance(array, np.ndarray)}
        for feed in feeds
    ]
    numbers = _varied(graph, feeds)
    filled = 0
    for tensor in unknown:
        seen = [found[tensor.name][0] for found in runs if tensor.name in found]
        if seen and len({len(shape) for shape in seen}) == 1:
            tensor.dtype = runs[0][tensor.name][1] if tensor.dtype is None else tensor.dtype
            tensor.shape = [dims[0] if numbers and len(set(dims)) == 1 else None for dims in zip(*seen)]
            filled += 1
    return filled


def _varied(graph: Graph, feeds: Sequence[Arrays]) -> bool:
    """Say whether every dynamic dimension of every input takes at least two values among `feeds`."""
    for tensor in graph.inputs:
        for axis, dim in enumerate(shape_of(tensor) or [None]):
            if not isinstance(dim, int) and len({np.shape(feed[tensor.name])[axis : axis + 1] for feed in feeds}) < 2:
                return False
    return True


# --- integers that are computed from shapes


def known_integers(tensor: Tensor) -> NDArray[Any] | None:
    """Return what is known of a small integer tensor of rank 0 or 1: an array of Dim, or None.

    Follows the chains that exporters write (Shape, Gather, Slice, Concat, Unsqueeze, arithmetic) back to the shapes of
    tensors, so that a dynamic batch size comes out as its symbol.
    """
    if isinstance(tensor, Constant):
        if kind_of(tensor) in ("i", "u") and len(tensor.shape) <= 1 and size_of(tensor) <= FEW:
            return np.asarray(tensor.values).astype(object)
        return None
    node = producer(tensor)
    if node is None or node.op not in CHAIN or not is_standard(node):
        return None
    return CHAIN[node.op](node)


def _shape(node: Node) -> NDArray[Any] | None:
    shape = shape_of(node.inputs[0])
    return None if shape is None else _objects(shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))])


def _size(node: Node) -> NDArray[Any] | None:
    known, dims = known_integers(node.inputs[0]), static_dims(node.inputs[0])
    if known is not None:
        return np.array(known.size, dtype=object)
    return None if dims is None else np.array(math.prod(dims), dtype=object)


def _gather(node: Node) -> NDArray[Any] | None:
    data, indices = known_integers(node.inputs[0]), node.inputs[1]
    if data is None or data.ndim != 1 or not isinstance(indices, Constant) or len(indices.shape) > 1:
        return None
    return np.asarray(data[np.asarray(indices.values)], dtype=object)


def _slice(node: Node) -> NDArray[Any] | None:
    data = known_integers(node.inputs[0])
    bounds = [known_integers(tensor) for tensor in node.inputs[1:] if tensor.name]
    if data is None or data.ndim != 1 or any(b is None or b.size != 1 or not isinstance(b.item(), int) for b in bounds):
        return None
    start, end, _, step = [b.item() for b in bounds if b is not None] + [0, 1][len(bounds) - 2 :]
    return data[slice(start, end if end >= -len(data) else None, step)]


def _concat(node: Node) -> NDArray[Any] | None:
    parts = [known_integers(tensor) for tensor in node.inputs]
    if any(part is None or part.ndim != 1 for part in parts):
        return None
    return np.concatenate([part for part in parts if part is not None])


def _one_element(shape: tuple[int, ...]) -> Callable[[Node], NDArray[Any] | None]:
    def reshaped(node: Node) -> NDArray[Any] | None:
        data = known_integers(node.inputs[0])
        return data.reshape(shape) if data is not None and data.size == 1 and data.shape != shape else None

    return reshaped


def _same(node: Node) -> NDArray[Any] | None:
    return known_integers(node.inputs[0])


def _cast(node: Node) -> NDArray[Any] | None:
    return _same(node) if node.attrs.get("to") in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) else None


def _arithmetic(apply: Callable[[int, int], int], neutral: int) -> Callable[[Node], NDArray[Any] | None]:
    def element(a: Dim, b: Dim) -> Dim:
        if isinstance(a, int) and isinstance(b, int):
            return apply(a, b)
        return a if b == neutral else None

    def combined(node: Node) -> NDArray[Any] | None:
        a, b = known_integers(node.inputs[0]), known_integers(node.inputs[1])
        if a is None or b is None:
            return None
        return np.asarray(np.frompyfunc(element, 2, 1)(a, b), dtype=object)

    return combined


def _quotient(a: int, b: int) -> int:
    return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else 0  # ONNX truncates towards zero


def _objects(dims: Sequence[Dim]) -> NDArray[Any]:
    array = np.empty(len(dims), dtype=object)
    array[:] = dims
    return array


CHAIN: Mapping[str, Callable[[Node], NDArray[Any] | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _one_element((1,)),
    "Squeeze": _one_element(()),
    "Identity": _same,
    "Cast": _cast,
    "Add": _arithmetic(lambda a, b: a + b, 0),
    "Sub": _arithmetic(lambda a, b: a - b, 0),
    "Mul": _arithmetic(lambda a, b: a * b, 1),
    "Div": _arithmetic(_quotient, 1),
}
