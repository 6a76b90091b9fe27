"""Bring a model of whatever form into the graph that the passes start from."""

from __future__ import annotations

from contextlib import suppress

import onnx
from onnx import ModelProto, TensorProto

from qcompile.ir.floats import check_ports, to_float32
from qcompile.ir.functions import inline
from qcompile.ir.graph import Graph
from qcompile.ir.load import import_graph
from qcompile.ir.opsets import lowered, raised
from qcompile.ir.packed_weights import unpack_weights
from qcompile.ir.protos import all_nodes, densify, hollow, open_sizes, opset
from qcompile.ir.scopes import unique_inner_names


def prepare(model: ModelProto, oldest: int, newest: int | None = None) -> Graph:
    """Return the graph the passes start from: plain, its opset at `oldest` or more, shapes inferred.

    A newer model keeps its opset up to `newest`; so does one that cannot be converted (custom domains, broken
    converters) if it is at least opsets.OLDEST_OPSET. Weights are shared with `model`, not copied. `graph.notes` says
    what was changed that a reader of the plan should know. Raises InputError for a model that cannot be converted.
    """
    light, weights, notes = _plain(model)
    if opset(light) < oldest:
        light = raised(light, oldest)
    elif newest is not None and opset(light) > newest:
        light = lowered(light, newest)
    with suppress(Exception):  # a model of custom operators keeps the shapes it came with
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    graph = import_graph(light, weights)
    graph.notes = notes
    return graph


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
