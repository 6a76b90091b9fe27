"""What a model holds if it is one: texts that are texts, tensors that have their values, weights that are finite."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto, external_data_helper

from qcompile.errors import InputError
from qcompile.ir.protos import WEIGHT_READERS, nodes_of, size, tensors_of
from qcompile.ir.store import place_of, values_of

CHUNK = 1 << 22
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
BELOW_A_BYTE = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}  # bits, packed
UNKNOWN_WIDTH = ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2")
COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
REMEDY = "the model is broken: train or export it again"


def check_sound(model: ModelProto, path: Path) -> None:
    """Raise InputError for a model that is damaged in its names or numbers; `path` is for messages."""
    _check_names(model, path)
    _check_values(model, path)


def check_texts(model: ModelProto, path: Path) -> None:
    """Raise InputError for a name that is no text: it is read before anything else is."""
    for text in _texts(model):
        if isinstance(text, bytes):  # so protobuf gives what is no UTF-8
            raise InputError(f"the name {text[:40]!r} is not UTF-8 text", where=str(path), remedy=REMEDY)


def _texts(message: Message) -> Iterator[Any]:
    """Yield every text in a message; what is none comes as bytes."""
    if isinstance(message, TensorProto):
        yield message.name  # its other fields are numbers: they would be copied
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from [value] if isinstance(value, str | bytes) else value
        elif field.type == field.TYPE_MESSAGE:
            for item in [value] if isinstance(value, Message) else value:
                yield from _texts(item)


def _check_names(model: ModelProto, path: Path) -> None:
    """ONNX wants every tensor made once; a graph in which two nodes make one tensor has no meaning."""
    if not model.graph.output:
        raise InputError("the model has no outputs", where=str(path), remedy="export it with its outputs")
    for what, items in (("input", model.graph.input), ("initializer", model.graph.initializer)):
        if twice := [name for name, times in Counter(item.name for item in items).items() if times > 1]:
            what = f"the model is broken: it has two {what}s of the name {twice[0]!r}"
            raise InputError(what, where=str(path), remedy="export it again")
    given = {tensor.name for tensor in model.graph.initializer} | {item.name for item in model.graph.input}
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name in given:
                what = f"the model is broken: tensor {name!r} is made twice, the second time by a {node.op_type}"
                raise InputError(what, where=str(path), remedy="export it again")
            given.add(name)


def _check_values(model: ModelProto, path: Path) -> None:
    weights = {name for node in nodes_of(model) if node.op_type in WEIGHT_READERS for name in node.input[1:]}
    for name, tensor in tensors_of(model):
        # masks may be infinite, and marks of missing values NaN; weights may not
        if bad := _wrong_count(tensor) or (_not_finite(tensor) if name in weights else ""):
            raise InputError(f"weight {name!r} {bad}", where=str(path), remedy=REMEDY)


def _wrong_count(tensor: TensorProto) -> str:
    """Say that a tensor has not as many values as its shape says, or that its type or shape is none."""
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        return f"has the unknown element type {tensor.data_type}"
    if any(dim < 0 for dim in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    name, count = TensorProto.DataType.Name(tensor.data_type), size(tensor)
    place = place_of(tensor)
    if name in UNKNOWN_WIDTH or (external_data_helper.uses_external_data(tensor) and place is None):
        return ""
    bits = BELOW_A_BYTE.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if place is not None or tensor.HasField("raw_data"):
        wanted, found = (count * bits + 7) // 8, len(tensor.raw_data) if place is None else place.length
    else:
        found = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type)))
        wanted = found if name in BELOW_A_BYTE else count * (2 if tensor.data_type in COMPLEX else 1)
    return "" if found == wanted else "contains more or fewer values than its shape says"


def _not_finite(tensor: TensorProto) -> str:
    if tensor.data_type not in FLOATS or not size(tensor):
        return ""
    values = values_of(tensor).reshape(-1)
    for start in range(0, values.size, CHUNK):
        part = values[start : start + CHUNK]
        low, high = part.min(), part.max()  # NaN comes through both; no mask as large as the weights
        if np.isnan(low):
            return "contains NaN"
        if not (np.isfinite(low) and np.isfinite(high)):
            return "contains infinite values"
    return ""
