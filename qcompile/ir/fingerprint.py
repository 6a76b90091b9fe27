"""What identifies a model: a hash of all that decides what it computes, and under which names."""

from __future__ import annotations

import hashlib
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import TensorProto, numpy_helper

from qcompile.ir.store import place_of, raw_values

REMARKS = {"doc_string", "metadata_props"}
# By message: who made the model, and what inference finds. The same model may say so or not.
SET_ASIDE = {
    "ModelProto": {
        *("ir_version", "producer_name", "producer_version", "domain", "model_version", "training_info"),
        "configuration",
    },
    "GraphProto": {"name", "value_info", "quantization_annotation"},
    "FunctionProto": {"value_info"},
    "NodeProto": {"device_configurations"},
    "TypeProto": {"denotation"},
}
VALUES = {
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "data_location",
    "external_data",
}
UNORDERED = {"initializer", "sparse_initializer", "opset_import", "functions", "attribute"}


def fingerprint(model: onnx.ModelProto) -> str:
    """Return a hash of nodes, attributes, all constants, subgraphs, functions, inputs, outputs, opsets and names.

    Whether the values of a tensor are raw bytes, typed fields or were loaded from a file makes no difference. No more
    than one tensor is copied at a time.
    """
    return _digest(model).hex()


def _digest(message: Message) -> bytes:
    kind = message.DESCRIPTOR.name
    found = hashlib.sha256(kind.encode())
    tensor = isinstance(message, TensorProto) and _has_values(message)
    ignored = REMARKS | SET_ASIDE.get(kind, set()) | (VALUES if tensor else set())
    for field, value in message.ListFields():
        if field.name not in ignored and value not in ("", b""):  # an empty name is none
            found.update(f"{field.name}:".encode())
            for part in _parts(field.name, value):
                found.update(b"%d:" % len(part))
                found.update(part)
    if isinstance(message, TensorProto) and tensor:
        found.update(raw_values(message) if place_of(message) or message.HasField("raw_data") else _typed(message))
    return found.digest()


def _has_values(tensor: TensorProto) -> bool:
    """Say whether the values can be had: not those of a file that nobody has read."""
    return tensor.data_location != TensorProto.EXTERNAL or place_of(tensor) is not None


def _parts(name: str, value: Any) -> list[bytes]:
    """Return one field, repeated or not, as bytes; messages by their digests."""
    if isinstance(value, Message | str | bytes | int | float):
        return [_part(value)]
    parts = [_part(item) for item in value]
    return sorted(parts) if name in UNORDERED else parts


def _part(value: Any) -> bytes:
    if isinstance(value, Message):
        return _digest(value)
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    return value if isinstance(value, bytes) else repr(value).encode()


def _typed(tensor: TensorProto) -> bytes:
    """Return the values in typed fields as raw_data spells them; those of texts are no numbers."""
    if tensor.data_type == TensorProto.STRING:
        return b""
    try:
        return bytes(numpy_helper.to_array(tensor).tobytes())
    except ValueError:  # more or fewer than the shape says
        return tensor.SerializeToString(deterministic=True)
