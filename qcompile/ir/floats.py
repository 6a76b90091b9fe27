"""Other floats: what a model computes in half or double precision is compiled as float32, inside its own interface."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompile.errors import InputError
from qcompile.ir.graph import unique_name
from qcompile.ir.packed_weights import PACKED
from qcompile.ir.protos import WEIGHT_READERS, all_graphs, all_nodes, set_nodes, tensor_names, tensor_type
from qcompile.ir.scopes import rename_inside
from qcompile.ir.store import values_of

Weights = dict[str, TensorProto]

FLOAT = TensorProto.FLOAT
HALF: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
NARROW = ("FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2")  # beginnings of names
NOT_FED = {"sequence_type": "a sequence", "map_type": "a map", "sparse_tensor_type": "a sparse tensor"}
DOUBLE: dict[int, str] = {TensorProto.DOUBLE: "float64"}
TYPE_ATTRIBUTES = {"to", "dtype", "output_datatype", "output_dtype", "stash_type", "softmax_precision", "precision"}


def to_float32(light: ModelProto, weights: Weights) -> list[str]:
    """Let `light` compute in float32, in place, with Casts at its inputs and outputs; return the names of what it had.

    Half precision always goes. Double precision goes where weights of layers have it: elsewhere it computes sizes.
    Names have to be unique in all subgraphs. Raises InputError for inputs and outputs that no Cast can serve.
    """
    found = set(_types(light, weights))
    wrong = found & HALF.keys()
    if any(tensor.data_type in DOUBLE for tensor in _layer_weights(light, weights)):
        wrong |= DOUBLE.keys()
    if wrong:
        ports = _cast_ports(light, weights, wrong)
        for name, tensor in weights.items():
            weights[name] = _converted(tensor, wrong)
        for graph in all_graphs(light.graph):
            _convert_graph(graph, wrong, ports)
    return sorted((HALF | DOUBLE)[type_] for type_ in wrong)


def rounds_inside(model: ModelProto) -> bool:
    """Say whether ONNX Runtime rounds inner values more than to float32: to half precision, or for MatMulNBits."""
    levels = (item.i for node in all_nodes(model.graph.node) if node.op_type == PACKED for item in node.attribute
              if item.name == "accuracy_level")  # fmt: skip
    return bool(HALF.keys() & set(_types(model, {}))) or any(level > 1 for level in levels)


def check_ports(light: ModelProto, weights: Weights) -> None:
    """Raise InputError for an input or output that nothing can feed or compare: narrow or complex ones, sequences."""
    for what, infos in (("input", light.graph.input), ("output", light.graph.output)):
        for info in (info for info in infos if info.name not in weights):
            name = TensorProto.DataType.Name(tensor_type(info.type).elem_type)
            kind = NOT_FED.get(str(info.type.WhichOneof("value")), "") if what == "input" else ""
            if not (kind or name.startswith((*NARROW, "COMPLEX"))):
                continue
            remedy = f"export the model with a float32 {what}, and make the rest inside"
            raise InputError(f"the model's {what} {info.name!r} is {kind or name.lower()}", remedy=remedy)


def _cast_ports(light: ModelProto, weights: Weights, wrong: set[int]) -> set[str]:
    """Let the inside know every input and output of a wrong type by another name, as float32; return their names."""
    taken, graph = tensor_names(light), light.graph
    ports = [info for info in graph.input if info.name not in weights]
    given, inner = {info.name for info in ports}, dict[str, str]()
    front, behind = list[NodeProto](), list[NodeProto]()
    for info in (*ports, *graph.output):
        if tensor_type(info.type).elem_type not in wrong or info.name in inner:
            continue
        if info.type.WhichOneof("value") != "tensor_type":
            what = f"the model's input or output {info.name!r} is a sequence or an optional of half or double precision"
            raise InputError(what, remedy="export the model in float32")
        inner[info.name] = name = unique_name(f"{info.name}_float32", taken)
        if info.name in given:
            front.append(helper.make_node("Cast", [info.name], [name], f"{name}_cast", to=FLOAT))
        else:
            type_ = tensor_type(info.type).elem_type
            behind.append(helper.make_node("Cast", [name], [info.name], f"{name}_cast", to=type_))
    rename_inside(graph, inner, weights)
    set_nodes(graph, [*front, *graph.node, *behind])
    return given | {info.name for info in graph.output}


def _types(light: ModelProto, weights: Weights) -> Iterator[int]:
    yield from (tensor.data_type for tensor in weights.values())
    for graph in all_graphs(light.graph):
        yield from (tensor.data_type for tensor in graph.initializer)
        yield from (tensor_type(info.type).elem_type for info in (*graph.input, *graph.output, *graph.value_info))
    for node in chain(all_nodes(light.graph.node), *(all_nodes(function.node) for function in light.functions)):
        for item in node.attribute:
            if item.type == AttributeProto.TENSOR:
                yield item.t.data_type
            elif item.name in TYPE_ATTRIBUTES:
                yield item.i


def _layer_weights(light: ModelProto, weights: Weights) -> Iterator[TensorProto]:
    constants = {tensor.name: tensor for graph in all_graphs(light.graph) for tensor in graph.initializer} | weights
    for node in all_nodes(light.graph.node):
        if node.op_type in WEIGHT_READERS:
            yield from (constants[name] for name in node.input[1:] if name in constants)


def _converted(tensor: TensorProto, wrong: set[int]) -> TensorProto:
    if tensor.data_type not in wrong:
        return tensor
    if tensor.data_type == TensorProto.BFLOAT16:  # which onnx gives as this or that, by its version
        raw = tensor.raw_data
        codes = np.frombuffer(raw, "<u2") if raw else np.array(tensor.int32_data, np.int64).astype(np.uint16)
        values = (codes.astype(np.uint32) << 16).view(np.float32).reshape(tuple(tensor.dims))
    else:
        with np.errstate(over="ignore"):
            values = values_of(tensor).astype(np.float32)
    return numpy_helper.from_array(values, tensor.name)


def _convert_graph(graph: GraphProto, wrong: set[int], ports: set[str]) -> None:
    """Convert constants, types and attributes; those of `ports` and of the Casts behind and in front of them stay."""
    for tensor in graph.initializer:
        tensor.CopyFrom(_converted(tensor, wrong))
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.name not in ports and tensor_type(info.type).elem_type in wrong:
            tensor_type(info.type).elem_type = FLOAT
    for node in graph.node:
        for item in node.attribute if not ports.intersection(node.output) else ():
            if item.type == AttributeProto.TENSOR:
                item.t.CopyFrom(_converted(item.t, wrong))
            elif item.type == AttributeProto.TYPE_PROTO and tensor_type(item.tp).elem_type in wrong:
                tensor_type(item.tp).elem_type = FLOAT
            elif item.name in TYPE_ATTRIBUTES and item.i in wrong:
                item.i = FLOAT
