"""Read a model file, turn it into a graph and back, write it: the only place where the ir touches files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs  # noqa: TID251  (the one door)
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, external_data_helper
from onnx_graphsurgeon.ir.tensor import LazyValues  # noqa: TID251
from onnx_graphsurgeon.logger import G_LOGGER  # noqa: TID251

from qcompile.errors import InputError
from qcompile.files import Content, read_bytes
from qcompile.ir.graph import Constant, Graph, nested_nodes, restore_attributes, restore_types
from qcompile.ir.packed_weights import PACKED
from qcompile.ir.protos import (
    ONNX_DOMAINS,
    all_graphs,
    detach_exotic_attributes,
    detach_exotic_types,
    hollow,
    nodes_of,
    opset,
    size,
    subgraphs,
    tensors_of,
)
from qcompile.ir.sound import check_sound, check_texts
from qcompile.ir.store import (
    PAGE,
    Place,
    Store,
    Stored,
    place_of,
    point,
    raw_values,
    stored_model,
    whole_model,
    whole_size,
)

MESSAGE_LIMIT = 2**31 - 2**20  # protobuf's limit for one message, with room for everything but the weights
QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QGemm",
    "MatMulIntegerToFloat", "MatMulNBits", "QAttention", "DynamicQuantizeMatMul",
}  # fmt: skip

G_LOGGER.severity = G_LOGGER.ERROR  # types that numpy lacks are left alone here, so its warnings say nothing

# --- reading


def load_model(path: Path, *, max_opset: int | None = None, store: Store | None = None) -> ModelProto:
    """Read a float ONNX model with its external data: into memory, large weights into `store` if there is one.

    Raises InputError where the file is missing, not ONNX, cut off, newer than `max_opset`, quantized already, or has
    NaN or infinite weights; each names what it found.
    """
    model = _parse(path)
    check_texts(model, path)
    _check_opset(model, path, max_opset)
    _check_float(model, path)
    _load_external(model, path, store)
    check_sound(model, path)
    return model if store is None else stored_model(model, store)


def read_any(path: Path) -> ModelProto:
    """Read an ONNX model, quantized or not, with its external data into memory; raises InputError as `load_model`."""
    model = _parse(path)
    check_texts(model, path)
    _load_external(model, path, None)
    check_sound(model, path)
    return model


def check_model(model: ModelProto, *, max_opset: int | None = None) -> None:
    """Raise InputError for a model in memory that `load_model` would not return."""
    where = Path("the model in memory")
    check_texts(model, where)
    _check_opset(model, where, max_opset)
    _check_float(model, where)
    check_sound(model, where)


def _parse(path: Path) -> ModelProto:
    damaged = InputError("not an ONNX model, or a truncated one", where=str(path), remedy="export or download it again")
    data = read_bytes(path, "model")
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise damaged from error
    if not model.ir_version or not model.HasField("graph") or not model.opset_import:
        raise damaged
    return model


def _check_opset(model: ModelProto, path: Path, max_opset: int | None) -> None:
    own = opset(model)
    if max_opset is not None and own > max_opset:
        raise InputError(
            f"the model has opset {own}, this installation reads up to {max_opset}",
            where=str(path),
            remedy=f"export with opset {max_opset} or lower, or upgrade onnx and onnxruntime",
        )


def _check_float(model: ModelProto, path: Path) -> None:
    """Refuse a model that computes on integers; weights that are only stored as such are unpacked later."""
    known = {name for name, _ in tensors_of(model)}
    for node in nodes_of(model):
        read = [name for name in node.input if name]
        if read and known.issuperset(read) and not any(subgraphs(node)):
            known.update(node.output)
        elif node.op_type == PACKED and known.issuperset(read[1:]):
            continue
        elif node.op_type in QUANTIZED or node.op_type.startswith("QLinear"):
            raise InputError(
                f"the model is quantized already: node {(node.name or ' '.join(node.output))!r} is a {node.op_type}",
                where=str(path),
                remedy="give the float model it was made from",
            )


def _load_external(model: ModelProto, path: Path, store: Store | None) -> None:
    remedy = "keep the model and its data files in one folder, as they were exported"
    external = {name: item for name, item in tensors_of(model) if external_data_helper.uses_external_data(item)}
    for name, tensor in external.items():
        if problem := _missing(tensor, path.parent):
            raise InputError(problem, where=f"tensor {name!r} of {path}", remedy=remedy)
    try:
        for tensor in external.values():
            loaded = TensorProto.FromString(tensor.SerializeToString())  # whose memory is freed, when it is stored
            external_data_helper.load_external_data_for_tensor(loaded, str(path.parent))
            loaded.data_location = TensorProto.DEFAULT  # not every version of onnx says so
            del loaded.external_data[:]
            tensor.CopyFrom(loaded if store is None else store.take(loaded))
    except InputError:
        raise
    except Exception as error:  # onnx raises its own, and those of Python
        what = f"external data cannot be read: {[*str(error).strip().splitlines(), ''][0]}"
        raise InputError(what, where=str(path), remedy=remedy) from error


def _missing(tensor: TensorProto, folder: Path) -> str:
    """Say why a tensor's values are not where it says."""
    given = {entry.key: entry.value for entry in tensor.external_data}
    location = given.get("location", "")
    try:
        offset, length = (int(given.get(key) or 0) for key in ("offset", "length"))
        if not (folder / location).is_file():
            return f"external data file {location!r} is missing"
        found = (folder / location).stat().st_size
    except (OSError, ValueError) as error:
        return f"external data cannot be read: {error}"
    if min(offset, length) < 0:
        return f"external data cannot stand at {offset}, {length} bytes long"
    if found < offset + length:
        return f"external data file {location!r} is truncated: {found} of {offset + length} bytes"
    return ""


def external_files(path: Path) -> list[Path]:
    """Return the files beside a model in which it keeps weights; none where it cannot be read."""
    with suppress(Exception):  # `load_model` says what is wrong with it
        model = onnx.load_model_from_string(read_bytes(path, "model"))
        return [path.parent / name for _, tensor in tensors_of(model) if (name := _location(tensor))]
    return []


def _location(tensor: TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


# --- to the graph and back


def to_graph(model: ModelProto) -> Graph:
    """Return `model` as a graph. Weights are shared, not copied; Constant nodes are constants."""
    return import_graph(*hollow(model))


def import_graph(light: ModelProto, weights: dict[str, TensorProto], store: Store | None = None) -> Graph:
    """Return what `hollow` made of a model as a graph; with `store`, its large weights are there."""
    attributes = detach_exotic_attributes(light)
    inner = [info for graph in all_graphs(light.graph) for info in (*graph.input, *graph.output, *graph.value_info)]
    types = detach_exotic_types(inner)
    graph = gs.import_onnx(light)
    for tensor in graph.inputs:
        if tensor.name in weights:
            tensor.to_constant(_held(weights[tensor.name], store))
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in weights]
    outermost = {id(node) for node in graph.nodes}
    for node, exotic in zip(nested_nodes(graph.nodes), attributes, strict=True):
        node.exotic_attributes, node.inner = exotic, id(node) not in outermost
    graph.exotic_types = types
    graph.metadata = {item.key: item.value for item in light.metadata_props}
    return graph


def _held(weight: TensorProto, store: Store | None) -> LazyValues:
    taken = weight if store is None else store.take(weight)
    return LazyValues(taken) if store is None or place_of(taken) is None else Stored(taken, store)


def to_model(graph: Graph, *, ir_version: int | None = None) -> ModelProto:
    """Return `graph` as an ONNX model; without `ir_version` it keeps its own. Opset, producer and metadata are kept."""
    for tensor in graph.tensors().values():
        values = tensor._values if isinstance(tensor, Constant) else None
        if isinstance(values, LazyValues) and not isinstance(values, Stored) and values.tensor.name != tensor.name:
            tensor.values = np.asarray(tensor.values)  # else the export renames the tensor inside the source model
    domains = [onnx.helper.make_opsetid("", graph.opset)]
    domains += [item for item in graph.import_domains or [] if item.domain not in ONNX_DOMAINS]
    known = {item.domain for item in domains} | {"ai.onnx"}
    custom = {node.domain for node in nested_nodes(graph.nodes) if node.domain} - known
    domains += [onnx.helper.make_opsetid(domain, 1) for domain in sorted(custom)]
    model = gs.export_onnx(graph, do_type_check=False, opset_imports=domains)
    restore_attributes(graph.nodes, model.graph.node)
    restore_types(model.graph, graph)
    onnx.helper.set_model_props(model, vars(graph).get("metadata", {}))
    model.ir_version = ir_version or graph.ir_version or onnx.IR_VERSION
    return model


# --- writing


def model_files(model: ModelProto, path: Path) -> dict[Path, Content]:
    """Return what to write for `model`: above protobuf's 2 GB the weights stand in `<path>.data` beside it."""
    inside = weight_bytes(model) < MESSAGE_LIMIT
    return {path: [whole_model(model).SerializeToString()]} if inside else split_files(model, path)


def split_files(model: ModelProto, path: Path) -> dict[Path, Content]:
    """Return what to write for `model` with its weights in `<path>.data`, so that they can be mapped.

    Weights that are stored in the folder of `path` stay where they are.
    """
    light, weights = hollow(model)
    here = {name: place for name, tensor in weights.items() if (place := place_of(tensor)) is not None}
    here = {name: place for name, place in here.items() if place.path.parent == path.parent}
    data = path.with_name(f"{path.name}.data")
    rest = {name: tensor for name, tensor in weights.items() if name not in here}
    places = here | _places(rest, data)
    _point_at(light, weights, places)
    return ({data: _padded(rest.values())} if rest else {}) | {path: [light.SerializeToString()]}


def byte_size(model: ModelProto) -> int:
    """Return how many bytes `model` takes in a file; above protobuf's limit those of its weights alone."""
    weights = weight_bytes(model)
    return weights if weights >= MESSAGE_LIMIT else whole_size(model)  # which fails above 2 GB


def weight_bytes(model: ModelProto) -> int:
    """Return how many bytes the weights of `model` take: found without writing it, as its own size is."""
    return sum(size(tensor) * _itemsize(tensor) for _, tensor in tensors_of(model))


def _places(weights: dict[str, TensorProto], data: Path) -> dict[str, Place]:
    """Return where tensors stand in a file that holds them one behind the other, each in pages of its own."""
    found: dict[str, Place] = {}
    offset = 0
    for name, tensor in weights.items():
        found[name] = Place(data, offset, _stored_size(tensor))
        offset += found[name].length + -found[name].length % PAGE
    return found


def _point_at(light: ModelProto, weights: dict[str, TensorProto], places: dict[str, Place]) -> None:
    """Let initializers of `light` take the place of its inputs for the weights, with their values at `places`."""
    inputs = [item for item in light.graph.input if item.name not in weights]
    del light.graph.input[:]
    light.graph.input.extend(inputs)
    for name, tensor in weights.items():
        pointer = light.graph.initializer.add(name=name, data_type=tensor.data_type, dims=tensor.dims)
        point(pointer, places[name], places[name].path.name)


def _stored_size(tensor: TensorProto) -> int:
    place = place_of(tensor)
    return len(raw_values(tensor)) if place is None else place.length


def _padded(tensors: Iterable[TensorProto]) -> Iterator[bytes | memoryview]:
    """Yield the values of each, and what fills its last page: so a runtime can map the file."""
    for tensor in tensors:
        raw = raw_values(tensor)
        yield raw
        yield bytes(-len(raw) % PAGE)


def _itemsize(tensor: TensorProto) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
