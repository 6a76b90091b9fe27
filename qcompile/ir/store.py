"""Weights on disk: the large tensors of a run stand in a file of its own, and are mapped while somebody reads them.

A stored tensor is an ONNX tensor with external data at an absolute place, which no file of a user's may have. It is a
few bytes wherever it is copied to; sessions, which want a relative place, get their model in the folder of the store.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
import weakref
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_graphsurgeon as gs  # noqa: TID251  (the one door)
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues  # noqa: TID251

from qcompile.errors import InputError
from qcompile.files import OURS
from qcompile.ir.protos import is_weight, tensors_of

LARGE_BYTES = 1 << 18  # below, a tensor is no matter
PAGE = 4096  # what can be mapped begins with one
MAPPED = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8,
          TensorProto.INT32, TensorProto.INT64}  # fmt: skip  # types that numpy has


class Place(NamedTuple):
    """Where the values of a stored tensor are: a file, and how many bytes at which offset."""

    path: Path
    offset: int
    length: int


class Stored(LazyValues):  # type: ignore[misc]  # the graph library ships no types
    """The values of a constant of a graph in a store: mapped anew each time they are read."""

    def __init__(self, tensor: TensorProto, store: Store) -> None:
        own = TensorProto()
        own.CopyFrom(tensor)  # an export gives it the name of its constant
        super().__init__(own)
        self.store = store

    def load(self) -> NDArray[Any]:
        """Return the values."""
        return values_of(self.tensor)


class Store:
    """A file of weights in a folder of its own. It is gone with the last object that refers to the store."""

    def __init__(self) -> None:
        self._end = 0

    @cached_property
    def path(self) -> Path:
        """The file; its folder is made when it is needed first."""
        folder = Path(tempfile.mkdtemp(prefix=OURS))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder / "weights"

    @contextmanager
    def scratch(self) -> Iterator[Store]:
        """Lend a store of another file in the same folder, which is gone behind the block: sessions have it mapped."""
        other = Store()
        other.path = self.path.with_name(f"scratch-{secrets.token_hex(4)}")
        try:
            yield other
        finally:
            other.path.unlink(missing_ok=True)

    def put(self, values: NDArray[Any], name: str) -> TensorProto:
        """Return an array as a tensor, a large one stored."""
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        if values.nbytes < LARGE_BYTES or kind not in MAPPED:
            return numpy_helper.from_array(values, name)
        return self._stored(np.ascontiguousarray(values), TensorProto(name=name, data_type=kind, dims=values.shape))

    def take(self, tensor: TensorProto) -> TensorProto:
        """Return a tensor with the same values, a large one stored."""
        if tensor.data_type not in MAPPED or not is_large(tensor):
            return tensor
        head = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        return self._stored(np.frombuffer(raw_values(tensor), np.uint8), head)

    def hold(self, values: NDArray[Any], name: str) -> NDArray[Any] | Stored:
        """Return what a constant holds: `values`, or where large ones are stored."""
        tensor = self.put(values, name) if values.nbytes >= LARGE_BYTES else None
        return values if tensor is None or place_of(tensor) is None else Stored(tensor, self)

    def hold_all(self, graph: gs.Graph) -> None:
        """Store the large constants of a graph that are held in memory."""
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray):
                tensor._values = self.hold(tensor._values, tensor.name)

    def _stored(self, values: NDArray[Any], head: TensorProto) -> TensorProto:
        try:
            with self.path.open("ab") as file:
                file.write(values.reshape(-1).view(np.uint8).data)
                file.write(bytes(-values.nbytes % PAGE))
        except OSError as error:
            what = f"cannot keep the weights on disk: {error.strerror or error}"
            raise InputError(what, where=tempfile.gettempdir(), remedy="make room there") from error
        point(head, Place(self.path, self._end, values.nbytes), str(self.path))
        self._end += values.nbytes + -values.nbytes % PAGE
        return head


def point(tensor: TensorProto, place: Place, location: str) -> None:
    """Let `tensor` have its values in a place, under that name of the file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=key, value=str(value))


def place_of(tensor: TensorProto) -> Place | None:
    """Return where a stored tensor's values are; None for any other."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    given = {entry.key: entry.value for entry in tensor.external_data}
    path = Path(given.get("location", ""))
    return Place(path, int(given["offset"]), int(given["length"])) if path.is_absolute() else None


def is_large(tensor: TensorProto) -> bool:
    """Say whether a tensor has so many bytes in memory that they matter."""
    return max(len(tensor.raw_data), 4 * len(tensor.float_data)) >= LARGE_BYTES


def values_of(tensor: TensorProto) -> NDArray[Any]:
    """Return the values of a tensor, stored or not. Writing to what is mapped changes this array alone."""
    place = place_of(tensor)
    if place is None:
        return numpy_helper.to_array(tensor)
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.asarray(np.memmap(place.path, kind, "c", place.offset, tuple(tensor.dims)))


def raw_values(tensor: TensorProto) -> bytes | memoryview:
    """Return the values of a tensor as raw_data spells them."""
    if place_of(tensor) is None:
        return tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.to_array(tensor).tobytes()
    return values_of(tensor).reshape(-1).view(np.uint8).data


# --- constants of a graph


def scratch_beside(graph: gs.Graph) -> AbstractContextManager[Store | None]:
    """Lend a store for what is made beside the weights of a graph, or None where these are not stored."""
    held = (tensor._values for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant))
    store = next((values.store for values in held if isinstance(values, Stored)), None)
    return nullcontext() if store is None else store.scratch()


def _read(constant: gs.Constant) -> NDArray[Any]:
    """Return the values: the graph library keeps what it has loaded, but not what is stored."""
    held = constant._values
    if isinstance(held, LazyValues) and not isinstance(held, Stored):
        held = constant._values = held.load()
    return np.asarray(held.load() if isinstance(held, Stored) else held)


def _write(constant: gs.Constant, values: NDArray[Any] | LazyValues) -> None:
    """Set the values: what takes the place of stored ones is stored too."""
    held = constant._values
    stores = isinstance(held, Stored) and isinstance(values, np.ndarray)
    constant._values = held.store.hold(values, constant.name) if stores else values


gs.Constant.values = property(_read, _write)  # type: ignore[assignment]


# --- whole models


def stored_model(model: ModelProto, store: Store) -> ModelProto:
    """Return `model` with large weights in `store`; nothing of it is changed, and no values are copied in memory."""
    if not any(is_large(tensor) for _, tensor in tensors_of(model)):
        return model
    light = ModelProto()
    _copy(model, light, but=("graph",))
    _copy(model.graph, light.graph, but=("initializer", "node"))
    light.graph.initializer.extend(map(store.take, model.graph.initializer))
    light.graph.node.extend(_stored_node(node, store) for node in model.graph.node)
    return light


def _stored_node(node: NodeProto, store: Store) -> NodeProto:
    """Return a node, the tensor of a Constant stored."""
    if not is_weight(node) or not is_large(node.attribute[0].t):
        return node
    light = NodeProto()
    _copy(node, light, but=("attribute",))
    light.attribute.append(helper.make_attribute(node.attribute[0].name, store.take(node.attribute[0].t)))
    return light


def _copy(message: Message, copied: Message, *, but: Collection[str]) -> None:
    """Copy all fields of a message except those."""
    for field, value in message.ListFields():
        if field.name in but:
            continue
        if isinstance(value, Message):
            getattr(copied, field.name).CopyFrom(value)
        elif isinstance(value, str | bytes | int | float):
            setattr(copied, field.name, value)
        else:
            getattr(copied, field.name).extend(value)


def whole_model(model: ModelProto) -> ModelProto:
    """Return `model` with all its values inside; itself where nothing is stored."""
    if all(place_of(tensor) is None for _, tensor in tensors_of(model)):
        return model
    whole = ModelProto()
    whole.CopyFrom(model)
    for _, tensor in tensors_of(whole):
        if place_of(tensor) is not None:
            tensor.raw_data = bytes(raw_values(tensor))
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return whole


def whole_size(model: ModelProto) -> int:
    """Return how many bytes `whole_model` takes in a file."""
    grown = sum(_growth(_whole_tensor_size(tensor), tensor) for tensor in model.graph.initializer)
    for node in filter(is_weight, model.graph.node):
        held = node.attribute[0]
        attribute = held.ByteSize() + _growth(_whole_tensor_size(held.t), held.t)
        grown += _growth(node.ByteSize() + _growth(attribute, held), node)
    graph = model.graph.ByteSize() + grown
    return model.ByteSize() + _growth(graph, model.graph)


def _whole_tensor_size(tensor: TensorProto) -> int:
    if (place := place_of(tensor)) is None:
        return tensor.ByteSize()
    head = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return head.ByteSize() + _field_size(place.length)


def _growth(length: int, field: Message) -> int:
    """Return by how much a message grows of which a field has `length` bytes instead of its own."""
    return _field_size(length) - _field_size(field.ByteSize())


def _field_size(length: int) -> int:
    """Return what a field of so many bytes takes: a byte for its number, its length in groups of 7 bits, and these."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length
