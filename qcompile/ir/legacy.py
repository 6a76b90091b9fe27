"""What operators meant before they were redefined, where onnx's version converter loses it.

The meaning is that of ONNX Runtime's kernels of the old operators. Those of opset 6 and less it no longer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from qcompile.ir.graph import unique_name
from qcompile.ir.protos import (
    ONNX_DOMAINS,
    all_graphs,
    all_nodes,
    innermost_first,
    is_weight,
    opset,
    set_nodes,
    tensor_names,
)

GRIDS_NAMED = 11  # before it Upsample and Resize know one grid of pixels; from it on a Resize names its own
BATCHED_SCAN = 8  # the one opset in which Scan has a batch axis in front

Fresh = Callable[[str], str]
Rewrite = Callable[[NodeProto, Fresh], list[NodeProto]]


def keep_meaning(light: ModelProto) -> ModelProto:
    """Return a copy of `light` in which the old operators that the converter gets wrong are written in others."""
    model = ModelProto.FromString(light.SerializeToString())
    rules = {op: rewrite for op, first, below, rewrite in LEGACY if first <= opset(light) < below}
    if opset(light) == BATCHED_SCAN and any(node.op_type == "Scan" for node in all_nodes(light.graph.node)):
        # What the converter does to Scan, and to shapes for its sake, is wrong: this step is done without it.
        rules |= {"Scan": _scan_over_batch, "Upsample": _scales_as_input}
        for item in model.opset_import:
            item.version += item.domain in ONNX_DOMAINS
    taken = tensor_names(model)
    for graph in innermost_first(model.graph):
        parts = [
            rules[node.op_type](node, lambda stem: unique_name(stem, taken))
            if node.op_type in rules and node.domain in ONNX_DOMAINS
            else [node]
            for node in graph.node
        ]
        set_nodes(graph, [node for part in parts for node in part])
    return model


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def _hardmax(node: NodeProto, fresh: Fresh) -> list[NodeProto]:
    """Before opset 13 Hardmax is over all dimensions from `axis` on."""
    x, y = node.input[0], node.output[0]
    flat, hard, shape = (fresh(f"{y}_{part}") for part in ("flat", "hard", "shape"))
    return [
        helper.make_node("Flatten", [x], [flat], axis=_attributes(node).get("axis", 1)),
        helper.make_node("Hardmax", [flat], [hard], node.name, axis=1),
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Reshape", [hard, shape], [y]),
    ]


def _batch_norm_per_element(node: NodeProto, fresh: Fresh) -> list[NodeProto]:
    """Before opset 9, with spatial=0, BatchNormalization has a mean and a variance for every element of a sample."""
    attributes = _attributes(node)
    if attributes.get("spatial", 1):
        return [node]
    (x, scale, bias, mean, variance), y = node.input, node.output[0]
    centred, raised, root, divided, scaled, epsilon = (
        fresh(f"{y}_{part}") for part in ("centred", "raised", "root", "divided", "scaled", "epsilon")
    )
    return [
        _constant(epsilon, np.float32(attributes.get("epsilon", 1e-5))),
        helper.make_node("Sub", [x, mean], [centred]),
        helper.make_node("Add", [variance, epsilon], [raised]),
        helper.make_node("Sqrt", [raised], [root]),
        helper.make_node("Div", [centred, root], [divided]),
        helper.make_node("Mul", [divided, scale], [scaled]),
        helper.make_node("Add", [scaled, bias], [y], node.name),
    ]


def _dropout(node: NodeProto, fresh: Fresh, mask_type: int = TensorProto.BOOL) -> list[NodeProto]:
    """Before opset 12 the mask of an inference is all zeros, later all ones."""
    if len(node.output) < 2 or not node.output[1]:
        return [node]
    x, (y, mask), zeros = node.input[0], node.output, fresh(f"{node.output[1]}_bool")
    return [
        helper.make_node("Identity", [x], [y], node.name),
        helper.make_node("Less", [x, x], [zeros]),
        helper.make_node("Cast", [zeros], [mask], to=mask_type),
    ]


def _scales_as_input(node: NodeProto, fresh: Fresh) -> list[NodeProto]:
    """From opset 9 on the scales of Upsample are an input."""
    attributes, scales = _attributes(node), fresh(f"{node.output[0]}_scales")
    mode = attributes.get("mode", b"nearest").decode()
    values = np.array(attributes["scales"], np.float32)
    return [
        _constant(scales, values),
        helper.make_node("Upsample", [node.input[0], scales], list(node.output), node.name, mode=mode),
    ]


def _scan_over_batch(node: NodeProto, fresh: Fresh) -> list[NodeProto]:
    """A Scan of opset 8 over a batch is a Scan over samples around one without batch."""
    if node.input[0]:
        raise ValueError("Scan with sequence lengths")
    attributes = _attributes(node)
    body, scanned = attributes["body"], attributes["num_scan_inputs"]
    inputs, outputs = ([fresh(f"{name}_sample") for name in names] for names in (node.input[1:], node.output))
    directions = attributes.get("directions", [0] * scanned)
    inner = helper.make_node(
        "Scan", inputs, outputs, node.name, body=body, num_scan_inputs=scanned, scan_input_directions=directions
    )
    sample = helper.make_graph([inner], f"{body.name}_sample", _ports(inputs, body.input), _ports(outputs, body.output))
    return [helper.make_node("Scan", node.input[1:], node.output, body=sample, num_scan_inputs=len(inputs))]


def _ports(names: list[str], like: Iterable[ValueInfoProto]) -> list[ValueInfoProto]:
    types = (info.type.tensor_type.elem_type for info in like)
    return [helper.make_tensor_value_info(name, type_, None) for name, type_ in zip(names, types)]


def _constant(name: str, values: NDArray[Any] | np.float32) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values)))


LEGACY: tuple[tuple[str, int, int, Rewrite], ...] = (  # operator, opsets from and below, what it is to be
    ("BatchNormalization", 7, 9, _batch_norm_per_element),
    ("Dropout", 7, 10, partial(_dropout, mask_type=TensorProto.FLOAT)),
    ("Dropout", 10, 12, _dropout),
    ("Hardmax", 1, 13, _hardmax),
)

# --- grids of pixels


def name_grids(model: ModelProto) -> None:
    """Let the Resize nodes of a model that was older name its grid: pixels count from their corners, not middles."""
    constants = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in all_nodes(model.graph.node) if is_weight(node)}
    taken = tensor_names(model)
    for graph in innermost_first(model.graph):
        parts = []
        for node in graph.node:
            if node.op_type == "Resize":
                scales = constants.get(node.input[2])
                known = None if scales is None else numpy_helper.to_array(scales)
                parts += _with_grid(node, known, lambda stem: unique_name(stem, taken))
            else:
                parts.append(node)
        set_nodes(graph, parts)


def _with_grid(node: NodeProto, scales: NDArray[Any] | None, fresh: Fresh) -> list[NodeProto]:
    """Of the pixel in front and the one behind, nearest means the first where it enlarges, the second where not."""
    if scales is None or (scales >= 1).all():
        return [_resize(node, node.input[0], node.input[2], node.output[0], "floor")]
    if (scales <= 1).all() or _attributes(node).get("mode", b"nearest") != b"nearest":
        return [_resize(node, node.input[0], node.input[2], node.output[0], "ceil")]
    larger, up, down = (fresh(f"{node.output[0]}_{part}") for part in ("larger", "up", "down"))
    return [
        _constant(up, np.maximum(scales, 1)),
        _constant(down, np.minimum(scales, 1)),
        _resize(node, node.input[0], up, larger, "floor", name=larger),
        _resize(node, larger, down, node.output[0], "ceil"),
    ]


def _resize(node: NodeProto, source: str, scales: str, target: str, nearest: str, *, name: str = "") -> NodeProto:
    grid = {"mode": _attributes(node).get("mode", b"nearest").decode(), "nearest_mode": nearest}
    grid["coordinate_transformation_mode"] = "asymmetric"
    return helper.make_node("Resize", [source, node.input[1], scales], [target], name or node.name, **grid)
