"""Local functions: inlined, those of another opset than the model's too."""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, defs, helper

from qcompile.errors import InputError
from qcompile.ir.opsets import converted, reason
from qcompile.ir.protos import ONNX_DOMAINS, all_nodes, opset, set_nodes, subgraphs


def inline(light: ModelProto) -> ModelProto:
    """Return `light` with the bodies of its functions in the place of their calls; raises InputError."""
    own = opset(light)
    for function in light.functions:
        for item in function.opset_import:
            if item.domain in ONNX_DOMAINS and item.version != own:
                _convert(function, function, item.version, own)
                item.version = own
    _write_defaults(light)
    return onnx.inliner.inline_local_functions(light) if light.functions else light


def _write_defaults(light: ModelProto) -> None:
    """Let every call name the attributes that have a default in its function: the inliner leaves those out."""
    defaults = {(item.domain, item.name, item.overload): item.attribute_proto for item in light.functions}
    bodies = [light.graph.node, *(function.node for function in light.functions)]
    for node in (node for body in bodies for node in all_nodes(body)):
        given = {item.name for item in node.attribute}
        wanted = defaults.get((node.domain, node.op_type, node.overload), ())
        node.attribute.extend(item for item in wanted if item.name not in given)


def _convert(function: FunctionProto, body: FunctionProto | GraphProto, version: int, target: int) -> None:
    """Bring the nodes of `body`, which stands in `function`, from one opset to another, one by one.

    The types in a function are open until it is called, and onnx's converter wants them known for a whole graph.
    """
    nodes = []
    for node in body.node:
        for inner in subgraphs(node):
            _convert(function, inner, version, target)
        if node.domain not in ONNX_DOMAINS or _same_form(node, version, target):
            nodes.append(node)
            continue
        try:
            nodes += _converted(node, version, target)
        except Exception as error:
            what = f"function {function.name!r} has opset {version}, the model {target}"
            remedy = "export both with one opset"
            raise InputError(f"{what}; {node.op_type} cannot be converted: {reason(error)}", remedy=remedy) from error
    set_nodes(body, nodes)


def _same_form(node: NodeProto, a: int, b: int) -> bool:
    """Say whether the operator was not redefined between opsets `a` and `b`, or is written the same way in both."""
    first, second = (defs.get_schema(node.op_type, version) for version in (a, b))
    if first.since_version == second.since_version or any(subgraphs(node)):
        return True
    lost = {item.name for item in node.attribute} - set(second.attributes)
    return any(item.ref_attr_name for item in node.attribute) and not lost


def _converted(node: NodeProto, version: int, target: int) -> list[NodeProto]:
    if any(item.ref_attr_name for item in node.attribute):
        raise ValueError("its attributes are those of the call")
    names = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.input if name}
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", list(names.values()), outputs)
    return list(
        converted(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)]), target).graph.node
    )
