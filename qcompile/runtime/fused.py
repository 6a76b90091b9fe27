"""Which kernels ONNX Runtime made of a file: read from the graph that it optimized."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import onnx

from qcompile.runtime.session import Session

INTEGER = ("QLinear", "QGemm", "MatMulInteger", "MatMulNBits", "ConvInteger", "DynamicQuantizeMatMul", "NhwcMaxPool")
GONE = "gone"  # folded, merged into a neighbour, or never in the file


def optimized_nodes(model: onnx.ModelProto | str | Path, *, fuse_qdq: bool = True) -> list[tuple[str, str]]:
    """Return (name, op_type) of every node of the optimized graph.

    At level EXTENDED, where an integer kernel keeps the name of the node it replaces. ALL, the level to run at, moves
    to channels-last, which renames; both compute the same bytes.
    """
    return [(node.name, node.op_type) for node in optimized_model(model, fuse_qdq=fuse_qdq).graph.node]


def optimized_model(model: onnx.ModelProto | str | Path, *, fuse_qdq: bool = True) -> onnx.ModelProto:
    """Return the model that ONNX Runtime makes of `model` at level EXTENDED, without the values of large tensors."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        Session(model, level="extended", threads=1, fuse_qdq=fuse_qdq, save_optimized=saved)
        return onnx.load(saved, load_external_data=False)


def is_integer(op_type: str) -> bool:
    """Say whether an operator of the optimized graph is an integer kernel."""
    return op_type.startswith(INTEGER)


def kernel_counts(nodes: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Return {op_type: number of nodes}, the most frequent first."""
    return dict(Counter(op_type for _, op_type in nodes).most_common())
