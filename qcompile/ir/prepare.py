"""Bring a model of whatever form into the graph that the passes start from."""

from __future__ import annotations

from contextlib import suppress

import onnx
import onnx.inliner
from onnx import ModelProto

from qcompile.ir.graph import Graph
from qcompile.ir.load import import_graph
from qcompile.ir.opsets import lowered, raised
from qcompile.ir.protos import hollow, opset


def prepare(model: ModelProto, oldest: int, newest: int | None = None) -> Graph:
    """Return the graph the passes start from: functions inlined, opset at `oldest` or more, shapes inferred.

    A newer model keeps its opset up to `newest`; so does one that cannot be converted (custom domains, broken
    converters) if it is at least opsets.OLDEST_OPSET. Weights are shared with `model`, not copied. Raises InputError
    for a model whose opset cannot be converted.
    """
    light, weights = hollow(model)
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    if opset(light) < oldest:
        light = raised(light, oldest)
    elif newest is not None and opset(light) > newest:
        light = lowered(light, newest)
    with suppress(Exception):  # a model of custom operators keeps the shapes it came with
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    return import_graph(light, weights)
