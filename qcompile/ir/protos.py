"""What the graph library cannot carry, kept beside it: large tensors, exotic attributes, types that are not tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

ONNX_DOMAINS = ("", "ai.onnx")
CONVOLUTIONS, MATRICES = frozenset({"Conv", "ConvTranspose"}), frozenset({"Gemm", "MatMul"})  # where channels stand
LAYERS = CONVOLUTIONS | MATRICES
WEIGHT_READERS = LAYERS | {"BatchNormalization"}
LARGE = 1024  # elements; shape chains stay far below, weights that matter for memory far above
EXOTIC = {AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS, AttributeProto.TENSORS,
          AttributeProto.GRAPHS, AttributeProto.TYPE_PROTO, AttributeProto.TYPE_PROTOS}  # fmt: skip


def hollow(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """Return a copy of `model` in which large weights are graph inputs, and those weights by name.

    Shape inference, opset conversion and inlining never look at the values of large tensors, but they serialise the
    model, which fails above 2 GB. The weights are not copied. Constant nodes become initializers on the way.
    """
    light = ModelProto(
        ir_version=max(model.ir_version, 4),  # from 4 on an initializer need not be a graph input as well
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )
    source, graph = model.graph, light.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    constants = {node.output[0]: node.attribute[0].t for node in source.node if is_weight(node)}
    constants |= {tensor.name: tensor for tensor in source.initializer}
    constants |= {tensor.values.name: dense(tensor) for tensor in source.sparse_initializer}
    large = {name: tensor for name, tensor in constants.items() if size(tensor) > LARGE}
    graph.input.extend(item for item in source.input if item.name not in constants)
    graph.input.extend(onnx.helper.make_tensor_value_info(name, t.data_type, t.dims) for name, t in large.items())
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.node.extend(node for node in source.node if not is_weight(node))
    for name, tensor in constants.items():
        if name not in large:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name
    return light, large


def dense(sparse: SparseTensorProto) -> TensorProto:
    """Return a sparse tensor with its zeros."""
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    full = np.zeros(tuple(sparse.dims), values.dtype)
    full[np.unravel_index(places, full.shape) if places.ndim == 1 else tuple(places.T)] = values
    return numpy_helper.from_array(full, sparse.values.name)


def densify(graph: GraphProto) -> None:
    """Write the sparse constants of `graph` and its subgraphs with their zeros: the graph library knows no others."""
    for inner in all_graphs(graph):
        inner.initializer.extend(dense(tensor) for tensor in inner.sparse_initializer)
        del inner.sparse_initializer[:]
    for node in all_nodes(graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "sparse_value":
            node.attribute[0].CopyFrom(helper.make_attribute("value", dense(node.attribute[0].sparse_tensor)))


def open_sizes(graph: GraphProto) -> None:
    """Take sizes below 0 out of the shapes: that is how some exporters write one that is open."""
    for inner in all_graphs(graph):
        for info in (*inner.input, *inner.output, *inner.value_info):
            for dim in tensor_type(info.type).shape.dim:
                if dim.dim_value < 0:
                    dim.ClearField("dim_value")


def tensor_type(kind: TypeProto) -> TypeProto.Tensor:
    """Return the type of a tensor, or of those in a sequence or an optional."""
    while (which := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, which).elem_type
    return kind.tensor_type


def opset(model: ModelProto) -> int:
    """Return the version of the standard operator set; 1 where the model names none."""
    return next((item.version for item in model.opset_import if item.domain in ONNX_DOMAINS), 1)


def is_weight(node: NodeProto) -> bool:
    """Say whether `node` is a Constant that holds a dense tensor."""
    constant = node.op_type == "Constant" and node.domain in ONNX_DOMAINS and len(node.output) == 1
    return constant and [attribute.name for attribute in node.attribute] == ["value"]


def size(tensor: TensorProto) -> int:
    """Return the number of elements."""
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield `nodes` and those of the subgraphs inside them, each before its subgraphs."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner.node)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield `graph` and the subgraphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs of a control-flow node."""
    return (attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH)


def tensor_names(model: ModelProto) -> set[str]:
    """Return the names of all tensors, those of subgraphs included."""
    names = {name for node in all_nodes(model.graph.node) for name in (*node.input, *node.output)}
    for graph in all_graphs(model.graph):
        names |= {info.name for info in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return names


def innermost_first(graph: GraphProto) -> list[GraphProto]:
    """Return `graph` and the subgraphs inside it in an order in which the nodes of each may be replaced."""
    return list(all_graphs(graph))[::-1]


def set_nodes(graph: GraphProto | FunctionProto, nodes: Iterable[NodeProto]) -> None:
    """Let `nodes`, old ones and new ones, be those of `graph`."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def nodes_of(model: ModelProto) -> Iterator[NodeProto]:
    """Yield all nodes of a model: those of subgraphs and functions too."""
    yield from all_nodes(model.graph.node)
    for function in model.functions:
        yield from function.node


def tensors_of(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yield every initializer and the tensor of every Constant node, under the name their readers use."""
    for graph in all_graphs(model.graph):
        yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in nodes_of(model):
        if is_weight(node):
            yield node.output[0], node.attribute[0].t


def detach_exotic_attributes(model: ModelProto) -> list[list[AttributeProto]]:
    """Take the attributes that the graph library drops or cannot decode out of `model`; one list per node, in order."""
    taken = []
    for node in all_nodes(model.graph.node):
        exotic = [attribute for attribute in node.attribute if attribute.type in EXOTIC or not is_text(attribute)]
        kept = [attribute for attribute in node.attribute if attribute not in exotic]
        if exotic:
            copies = [AttributeProto.FromString(attribute.SerializeToString()) for attribute in [*exotic, *kept]]
            del node.attribute[:]
            node.attribute.extend(copies[len(exotic) :])
            taken.append(copies[: len(exotic)])
        else:
            taken.append([])
    return taken


def is_text(attribute: AttributeProto) -> bool:
    """Say whether every string of `attribute` is UTF-8 text; custom operators also keep bytes in them."""
    try:
        for text in [attribute.s, *attribute.strings]:
            text.decode()
    except UnicodeDecodeError:
        return False
    return True


def detach_exotic_types(infos: Iterable[ValueInfoProto]) -> dict[str, onnx.TypeProto]:
    """Clear the types that are not plain tensors (sequences, optionals, maps); return them by name."""
    taken = {}
    for info in infos:
        kind = info.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            taken[info.name] = onnx.TypeProto.FromString(info.type.SerializeToString())
            info.ClearField("type")
    return taken
