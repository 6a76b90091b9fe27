"""Opsets: raise a model to the one that rewrites expect, or lower it to one that the runtime has kernels for."""

from __future__ import annotations

import re

import onnx
from onnx import ModelProto

from qcompile.errors import InputError
from qcompile.ir.legacy import GRIDS_NAMED, keep_meaning, name_grids
from qcompile.ir.protos import ONNX_DOMAINS, all_nodes, opset, subgraphs

OLDEST_OPSET = 13  # below it Squeeze, ReduceSum, Softmax ... have another form than the rewrites expect
GROUP_NORM_REDEFINED = 21  # a scale per channel instead of one per group; the converter leaves the node as it is

PLACE = re.compile(r"^\S+:\d+: .* failed: ")  # in the source of onnx


def raised(light: ModelProto, target: int) -> ModelProto:
    """Return `light` at opset `target`, or as it is where a model of OLDEST_OPSET or more cannot be converted.

    A model of other domains alone has no opset, so it gets that one. Raises InputError for an older model that cannot
    be converted.
    """
    if not any(item.domain in ONNX_DOMAINS for item in light.opset_import):
        light.opset_import.append(onnx.helper.make_opsetid("", target))
        return light
    own, nodes = opset(light), all_nodes(light.graph.node)
    if own < GROUP_NORM_REDEFINED <= target and any(node.op_type == "GroupNormalization" for node in nodes):
        target = GROUP_NORM_REDEFINED - 1
    try:
        return converted(light, target)
    except Exception as error:  # the converter throws whatever its C++ code throws
        if own >= OLDEST_OPSET:
            return light
        raise InputError(
            f"opset {own} is too old and cannot be converted to {target}: {reason(error)}",
            remedy=f"export the model with opset {OLDEST_OPSET} or newer",
        ) from error


def lowered(light: ModelProto, target: int) -> ModelProto:
    """Return `light` at the older opset `target`; raises InputError where it uses an operator that came later."""
    try:
        return converted(light, target)
    except Exception as error:
        raise InputError(
            f"the installed ONNX Runtime quantizes up to opset {target}, and opset {opset(light)} cannot be converted "
            f"to it: {reason(error)}",
            remedy=f"export the model with opset {target} or lower, or upgrade onnxruntime",
        ) from error


def converted(light: ModelProto, target: int) -> ModelProto:
    """Return `light` at opset `target`, with the meaning that it has for ONNX Runtime now; raises what onnx raises."""
    own = opset(light)
    done = onnx.version_converter.convert_version(keep_meaning(light), target)
    if own < GRIDS_NAMED <= target:
        name_grids(done)
    if [item.name for item in done.graph.output] != [item.name for item in light.graph.output]:
        raise ValueError("the converter changed the outputs")
    if own != target:
        check_nodes(done)
    return done


def check_nodes(model: ModelProto) -> None:
    """Raise onnx's ValidationError for a node that is none of its opset."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = onnx.IR_VERSION, {i.domain: i.version for i in model.opset_import}
    for node in all_nodes(model.graph.node):
        if not any(subgraphs(node)):  # the nodes inside come by themselves
            onnx.checker.check_node(node, context)


def reason(error: Exception) -> str:
    """Return the first line of what onnx says, without the place in its source."""
    return PLACE.sub("", str(error).strip().split("\n")[0])
