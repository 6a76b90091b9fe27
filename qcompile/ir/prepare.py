"""Bring a model of whatever form into the graph that the passes start from."""

from __future__ import annotations

from contextlib import suppress

import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from qcompile.ir.floats import check_ports, to_float32
from qcompile.ir.freeze import sizes
from qcompile.ir.functions import inline
from qcompile.ir.graph import Graph
from qcompile.ir.load import import_graph
from qcompile.ir.opsets import lowered, raised
from qcompile.ir.packed_weights import unpack_weights
from qcompile.ir.protos import all_nodes, densify, hollow, open_sizes, opset
from qcompile.ir.scopes import unique_inner_names
from qcompile.ir.store import Store


def prepare(model: ModelProto, oldest: int, newest: int | None = None, store: Store | None = None) -> Graph:
    """Return the graph the passes start from: plain, its opset at `oldest` or more, shapes inferred.

    A newer model keeps its opset up to `newest`; so does one that cannot be converted (custom domains, broken
    converters) if it is at least opsets.OLDEST_OPSET. Weights are shared with `model`, not copied; large ones are in
    `store`, if there is one. `graph.notes` says what was changed that a reader of the plan should know. Raises
    InputError for a model that cannot be converted.
    """
    light, weights, notes = _plain(model)
    if opset(light) < oldest:
        light = raised(light, oldest)
    elif newest is not None and opset(light) > newest:
        light = lowered(light, newest)
    _spell_defaults(light)
    _forget_stale_shapes(light)
    with suppress(Exception):  # a model of custom operators keeps the shapes it came with
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    graph = import_graph(light, weights, store)
    graph.notes = notes
    return graph


def _spell_defaults(light: ModelProto) -> None:
    """Write out what the shape inference of onnx takes for 0 where it is left out."""
    for node in all_nodes(light.graph.node):
        if node.op_type == "STFT" and not any(item.name == "onesided" for item in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("onesided", 1))


def _forget_stale_shapes(light: ModelProto) -> None:
    """Drop recorded shapes of inner tensors where one contradicts what follows: an edit left them behind."""
    bare = ModelProto()
    bare.CopyFrom(light)
    del bare.graph.value_info[:]
    with suppress(Exception):  # what cannot be inferred contradicts nothing
        found = {info.name: info for info in onnx.shape_inference.infer_shapes(bare).graph.value_info}
        if any(info.name in found and _contradict(info, found[info.name]) for info in light.graph.value_info):
            del light.graph.value_info[:]


def _contradict(one: ValueInfoProto, other: ValueInfoProto) -> bool:
    if not (one.type.tensor_type.HasField("shape") and other.type.tensor_type.HasField("shape")):
        return False
    pairs = list(zip(sizes(one), sizes(other)))
    known = [(a.dim_value, b.dim_value) for a, b in pairs if a.HasField("dim_value") and b.HasField("dim_value")]
    return len(sizes(one)) != len(sizes(other)) or any(a != b for a, b in known)


def plain_model(model: ModelProto) -> ModelProto:
    """Return `model` as it is compiled, at its own opset: for runtimes that cannot run it as it came."""
    light, weights, _ = _plain(model)
    ports = [info for info in light.graph.input if info.name not in weights]
    del light.graph.input[:]
    light.graph.input.extend(ports)
    for name, tensor in weights.items():
        light.graph.initializer.add().CopyFrom(tensor)
        light.graph.initializer[-1].name = name
    return light


def _plain(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto], list[str]]:
    """Return a copy without large weights, those, and notes: no functions, no sparse tensors, float32, unique names."""
    light, weights = hollow(model)
    check_ports(light, weights)
    light = inline(light)
    densify(light.graph)
    open_sizes(light.graph)
    unique_inner_names(light)
    packed = unpack_weights(light, weights) or any(n.op_type == "DequantizeLinear" for n in all_nodes(light.graph.node))
    floats = to_float32(light, weights)
    notes = ["weights that are stored in few bits are unpacked, and quantized anew"] if packed else []
    if floats:
        notes.append(f"what it computes in {' and '.join(floats)} is compiled as float32, its interface is kept")
    return light, weights, notes
