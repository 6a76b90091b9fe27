"""Freeze inputs and sizes of a model: what is fixed is no input any more, and what follows from it folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, numpy_helper

from qcompile.errors import InputError, nearest
from qcompile.ir.protos import all_graphs


def freeze(model: ModelProto, fixed: Iterable[tuple[str, Any]]) -> ModelProto:
    """Return a copy of `model` in which inputs are constants and symbolic sizes are numbers; raises InputError."""
    frozen = ModelProto()
    frozen.CopyFrom(model)
    frozen.ir_version = max(model.ir_version, 4)  # from 4 on an initializer need not be an input as well
    done = set[str]()
    for name, value in fixed:
        if name in done:
            raise InputError(f"--fix {name} is given twice", remedy="leave one of them out")
        done.add(name)
        inputs = {item.name: item for item in free_inputs(frozen)}
        if name in inputs:
            frozen.graph.initializer.append(numpy_helper.from_array(constant(inputs[name], value), name))
            frozen.graph.input.remove(inputs[name])
        elif not fix_size(frozen, name, value):
            symbols = {dim.dim_param for item in inputs.values() for dim in sizes(item)} - {""}
            known = nearest(name, [*inputs, *symbols])
            raise InputError(f"--fix {name}: the model has no such input and no such size", remedy=known)
    return frozen


def free_inputs(model: ModelProto) -> Iterator[ValueInfoProto]:
    """Yield the inputs that are no initializers."""
    given = {tensor.name for tensor in model.graph.initializer}
    return (item for item in model.graph.input if item.name not in given)


def constant(item: ValueInfoProto, value: Any) -> NDArray[Any]:
    """Return `value` with type and shape of an input; one number fills a shape that is known."""
    where, kind = f"--fix {item.name}", item.type.tensor_type
    given = np.asarray(value)
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in sizes(item)]
    if given.ndim == 0 and None not in shape:
        given = np.full([size or 0 for size in shape], given)
    if given.ndim != len(shape) or any(size not in (None, have) for size, have in zip(shape, given.shape)):
        wanted = ["?" if size is None else size for size in shape]
        what = f"{where}: the input takes {wanted}, the value is {list(given.shape)}".replace("'", "")
        raise InputError(what, remedy="give a value of that shape")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    with np.errstate(all="ignore"):
        made = np.zeros(given.shape, dtype) if (beyond := given.dtype == object) else given.astype(dtype)  # of 64 bits
    exact = not beyond and np.array_equal(made, given)
    if not exact and (beyond or dtype.kind != "f" or not np.isfinite(made).all()):
        raise InputError(f"{where}: {value} is no {dtype}", remedy="give values of the input's type")
    return made


def fix_size(model: ModelProto, name: str, value: Any) -> bool:
    """Let the symbolic size `name` be the number `value` everywhere; False where no input has it."""
    if not any(dim.dim_param == name for item in model.graph.input for dim in sizes(item)):
        return False
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"--fix {name}: {value} is no size", remedy="give a whole number")
    for graph in all_graphs(model.graph):
        for item in (*graph.input, *graph.output, *graph.value_info):
            for dim in sizes(item):
                if dim.dim_param == name:
                    dim.dim_value = value
    return True


def sizes(item: ValueInfoProto) -> Any:
    """Return the dimensions of a tensor; none where it has no shape, or is no tensor."""
    return item.type.tensor_type.shape.dim if item.type.HasField("tensor_type") else []
