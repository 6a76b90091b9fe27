"""Graphs on their way to another process: nodes and tensors refer to each other, so they go as ONNX."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

from qcompile.ir.graph import Graph
from qcompile.ir.load import import_graph, to_model
from qcompile.ir.protos import hollow
from qcompile.ir.store import whole_model


def _as_onnx(graph: Graph) -> tuple[Callable[..., Graph], tuple[Any, ...]]:
    """Return what makes the graph again: ONNX without the large weights, and these."""
    return import_graph, hollow(whole_model(to_model(graph)))


copyreg.pickle(Graph, _as_onnx)
