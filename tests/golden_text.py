"""An emitted file as text for golden files: nodes as ONNX prints them, initializers in a table of their own."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

FEW = 8  # elements of a shape


def golden_text(model: onnx.ModelProto) -> str:
    """Return the file as text, without what calibration's last digits change: weights, biases, all but three digits."""
    nodes = onnx.ModelProto()
    nodes.CopyFrom(model)
    del nodes.graph.initializer[:], nodes.metadata_props[:]  # hashes, the version
    rows = [row(tensor) for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name)]
    text = re.sub(r"[ \t]+$", "", onnx.printer.to_text(nodes), flags=re.MULTILINE).rstrip()
    return "\n".join([text, "", "initializers", *rows, ""])


def row(tensor: onnx.TensorProto) -> str:
    """Return name, type and shape, and the values of a number or a shape."""
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    shape = f"[{','.join(map(str, tensor.dims))}]" if tensor.dims else ""
    return f"   {tensor.name} {kind}{shape} {values(numpy_helper.to_array(tensor))}".rstrip()


def values(array: NDArray[Any]) -> str:
    """Return the values of one number, or of a few int64: a shape, pads."""
    if array.size > 1 and (array.dtype != np.int64 or array.size > FEW):
        return ""
    return " ".join(f"{value:.3g}" if array.dtype.kind == "f" else str(value) for value in array.reshape(-1).tolist())
