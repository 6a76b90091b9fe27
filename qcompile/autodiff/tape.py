"""The tape: a growing ONNX graph that knows the shapes and constants of the forward pass it began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcompile.autodiff.operators import Operand, Operators, Value
from qcompile.errors import InputError
from qcompile.ir import unique_name
from qcompile.ir.protos import ONNX_DOMAINS, all_nodes, hollow, size, subgraphs
from qcompile.ir.store import values_of

OLDEST_OPSET = 18  # the first where all reductions and Pad take their axes as inputs
FEW = 1024  # elements; axes, pads, shapes and bounds have fewer
Dim: TypeAlias = int | str | None  # a size, a symbol (equal symbols are equal sizes), or unknown


@dataclass(frozen=True)
class Node:
    """One node of the forward graph. An absent optional input or output is ""."""

    op: str
    domain: str
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Any]
    captured: frozenset[Value] = frozenset()  # what its subgraphs read, for control flow

    @classmethod
    def of(cls, proto: NodeProto) -> Node:
        """Read a node; attributes of type graph are left out."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        values = {
            item.name: helper.get_attribute_value(item)
            for item in proto.attribute
            if item.type not in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
        }
        decoded = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        captured = frozenset(reads(proto) - set(proto.input))
        return cls(proto.op_type, domain, proto.name, tuple(proto.input), tuple(proto.output), decoded, captured)

    def input(self, index: int) -> Value:
        """Return an optional input, "" if it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def output(self, index: int) -> Value:
        """Return an optional output, "" if it is absent."""
        return self.outputs[index] if index < len(self.outputs) else ""


class Tape(Operators):
    """Nodes in the order of appending, on top of the inputs and initializers of `model`.

    Equal constants are stored once, and a node that was appended before is not appended again: rules may ask for the
    same intermediate value, or for one of the forward pass, without cost. `forward` are the nodes to differentiate.
    """

    def __init__(self, model: ModelProto) -> None:
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)
        if self.opset < OLDEST_OPSET:
            raise InputError(
                f"a graph of opset {self.opset} cannot be differentiated",
                where=model.graph.name,
                remedy=f"convert it to opset {OLDEST_OPSET} or later",
            )
        self.model = model
        self.forward: list[Node] = []
        self.nodes: list[NodeProto] = []
        self.float_type = np.dtype(np.float32)
        self._domains = {entry.domain: entry.version for entry in model.opset_import}
        self._pool: dict[tuple[Any, ...], Value] = {}
        self._made: dict[Value, NodeProto] = {}
        self._declared = {item.name: item for item in (*model.graph.input, *model.graph.value_info)}
        self._infos: dict[Value, TensorProto | onnx.ValueInfoProto] = {**self._declared}
        self._constants: dict[Value, NDArray[Any]] = {}
        self._added: list[TensorProto] = []
        graph = model.graph
        fed = {item.name for item in graph.input}  # an initializer that is an input too is only its default
        for tensor in graph.initializer:
            self._infos[tensor.name] = tensor
            if size(tensor) <= FEW and tensor.name not in fed:
                self._constants[tensor.name] = values_of(tensor)
        self._taken = self.known_values()
        self._taken |= {name for node in all_nodes(graph.node) for name in (*node.output, node.name)}

    # appending

    def op(self, op_type: str, *inputs: Operand, domain: str = "", output: Value = "", **attributes: Any) -> Value:
        """Append one node with one output, named `output` if given; return the output of an equal node if there is."""
        names = [self.value(operand) for operand in inputs]
        while names and not names[-1]:
            names.pop()
        key = (domain, op_type, *names, *sorted((name, _frozen(value)) for name, value in attributes.items()))
        if output or key not in self._pool:
            result = output or self.unique(f"{op_type}_{len(self.nodes)}")
            self.nodes.append(helper.make_node(op_type, names, [result], result, domain=domain, **attributes))
            self._pool[key] = result
            self._made[result] = self.nodes[-1]
        return self._pool[key]

    def ops(self, op_type: str, *inputs: Operand, outputs: int, **attributes: Any) -> list[Value]:
        """Append one node with several outputs."""
        names = [self.unique(f"{op_type}_{len(self.nodes)}_{index}") for index in range(outputs)]
        operands = [self.value(item) for item in inputs]
        self.nodes.append(helper.make_node(op_type, operands, names, names[0], **attributes))
        return names

    def keep(self, proto: NodeProto) -> None:
        """Append a node of the forward graph as it stands."""
        copy = NodeProto()
        copy.CopyFrom(proto)
        self.nodes.append(copy)
        self._made.update(dict.fromkeys(copy.output, copy))
        node = Node.of(copy)
        if len(node.outputs) == 1 and not node.captured:
            attributes = sorted((name, _frozen(value)) for name, value in node.attributes.items())
            self._pool.setdefault((node.domain, node.op, *node.inputs, *attributes), node.outputs[0])
        if node.op == "Constant" and "value" in node.attributes:
            self._constants[node.outputs[0]] = values_of(node.attributes["value"])

    def extra_output(self, node: Node, index: int) -> Value:
        """Return an optional output of a forward node, which is asked for if nobody did."""
        proto = next(item for item in self.nodes if item.output and item.output[0] == node.outputs[0])
        while len(proto.output) <= index:
            proto.output.append("")
        if not proto.output[index]:
            proto.output[index] = self.unique(f"{node.outputs[0]}_{index}")
        return str(proto.output[index])

    def value(self, operand: Operand) -> Value:
        """Return the name of `operand`, which becomes an initializer if it is a constant."""
        if isinstance(operand, str):
            return operand
        if isinstance(operand, float):
            operand = np.asarray(operand, self.float_type)
        array = np.asarray(operand, None if isinstance(operand, np.ndarray | np.generic) else np.int64)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._pool:
            self._pool[key] = name = self.unique(f"constant_{len(self._added)}")
            self._added.append(numpy_helper.from_array(array, name))
            self._constants[name] = array
        return self._pool[key]

    def unique(self, stem: str) -> Value:
        """Return `stem`, or `stem_2`, `stem_3` ...: a name that nothing has, which is taken now."""
        return unique_name(stem, self._taken)

    # what is known of the forward graph

    def infer(self) -> None:
        """Learn types and shapes of everything appended so far."""
        light, _ = hollow(self._model(self.nodes, [item.name for item in self.model.graph.output]))
        fed = {item.name for item in light.graph.input}  # the rest is of operators that shape inference does not know
        light.graph.value_info.extend(item for name, item in self._declared.items() if name not in fed)
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        self._infos.update({item.name: item for item in (*inferred.value_info, *inferred.input, *inferred.output)})
        kinds = [self.dtype(item.name) for item in self.model.graph.output]
        self.float_type = next((kind for kind in kinds if kind is not None and kind.kind == "f"), self.float_type)

    def shape_of(self, value: Value) -> tuple[Dim, ...] | None:
        """Return the dimensions of a forward value, None where not even the rank is known."""
        info = self._infos.get(value)
        if value in self._constants:
            return self._constants[value].shape
        if isinstance(info, TensorProto):
            return tuple(info.dims)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        dims = info.type.tensor_type.shape.dim
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)

    def dtype(self, value: Value) -> np.dtype[Any] | None:
        """Return the type of a forward value's elements, None where it is unknown."""
        info = self._infos.get(value)
        if value in self._constants:
            return self._constants[value].dtype
        kind = info.data_type if isinstance(info, TensorProto) else info.type.tensor_type.elem_type if info else 0
        return helper.tensor_dtype_to_np_dtype(kind) if kind else None

    def known_values(self) -> set[Value]:
        """Return the names of the graph's inputs and initializers."""
        graph = self.model.graph
        return {item.name for item in graph.input} | {item.name for item in graph.initializer}

    def producer(self, value: Value) -> NodeProto | None:
        """Return the node that makes `value`, None for inputs and constants."""
        return self._made.get(value)

    def constant(self, value: Value) -> NDArray[Any] | None:
        """Return the array behind a small constant, else None."""
        return self._constants.get(value)

    # the result

    def describe(self, value: Value, like: Value) -> None:
        """Note that `value` has the type and shape of `like`, unless they are known."""
        if value in self._infos:
            return
        self._infos[value] = helper.make_tensor_value_info(
            value, helper.np_dtype_to_tensor_dtype(self.dtype(like) or self.float_type), self.shape_of(like)
        )

    def declare(self, value: Value, shape: Sequence[Dim]) -> None:
        """Note the shape of a float value whose operator shape inference does not know."""
        kind = helper.np_dtype_to_tensor_dtype(self.float_type)
        self._infos[value] = self._declared[value] = helper.make_tensor_value_info(value, kind, shape)

    def assemble(self, outputs: Iterable[Value]) -> ModelProto:
        """Return a model with `outputs` and the nodes and constants that they need; all inputs stay."""
        outputs = list(outputs)
        return self._model(needed(self.nodes, outputs), outputs)

    def _model(self, nodes: list[NodeProto], outputs: list[Value]) -> ModelProto:
        given = {item.name: item for item in self.model.graph.output}
        read = set(outputs).union(*map(reads, nodes))
        graph = helper.make_graph(
            nodes,
            self.model.graph.name or "graph",
            self.model.graph.input,
            [given.get(name) or self._info(name) for name in outputs],
            [item for item in (*self.model.graph.initializer, *self._added) if item.name in read],
        )
        domains = {node.domain for node in all_nodes(nodes)}.difference(ONNX_DOMAINS)
        imports = [helper.make_opsetid(domain, self._domains.get(domain, 1)) for domain in sorted(domains)]
        imports.append(helper.make_opsetid("", self.opset))
        return helper.make_model(graph, opset_imports=imports, ir_version=max(self.model.ir_version, 8))

    def _info(self, name: Value) -> onnx.ValueInfoProto:
        info = self._infos.get(name)
        return info if isinstance(info, onnx.ValueInfoProto) else onnx.ValueInfoProto(name=name)


def needed(nodes: Iterable[NodeProto], outputs: Iterable[Value]) -> list[NodeProto]:
    """Return those of `nodes`, in their order, that `outputs` depend on."""
    read, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if not read.isdisjoint(node.output):
            kept.append(node)
            read |= reads(node)
    return kept[::-1]


def reads(node: NodeProto) -> set[Value]:
    """Return the names that a node reads, those that its subgraphs may capture included."""
    inner = [item.name for graph in inner_graphs([node]) for item in graph.output]
    return {name for item in all_nodes([node]) for name in item.input if name} | set(inner)


def inner_graphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Yield the subgraphs inside `nodes`, at any depth."""
    return (graph for node in all_nodes(nodes) for graph in subgraphs(node))


def _frozen(value: Any) -> Any:
    """Return an attribute's value as something that has a hash."""
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(value)
    return value.SerializeToString() if hasattr(value, "SerializeToString") else value
