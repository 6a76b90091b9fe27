"""What ONNX Runtime says of a file: whether it loads it, and which nodes it runs on integers."""

from __future__ import annotations

import re
from typing import Final

from onnx import NodeProto

from qcompile.checking.graph import QuantizedFile
from qcompile.checking.layers import quantized
from qcompile.checking.result import Verdict
from qcompile.emission.emitted import CODES
from qcompile.errors import QCompileError
from qcompile.runtime.fused import is_integer, kernel_counts, optimized_model
from qcompile.runtime.session import NAME

MERGED: Final = "/MatMulAddFusion"  # in the name of the Gemm that it makes of a MatMul and an Add
PREFIX: Final = re.compile(r"^.* cannot load the model: (Load model from \S+ failed: ?)?")


class Kernels:
    """The graph that ONNX Runtime makes of a file: `operators` are what it makes of nodes, by their names.

    `integer` says whether those run on integers. Nodes that it folds or merges into a neighbour are in neither.
    """

    def __init__(self, file: QuantizedFile) -> None:
        self.integer: dict[str, bool] = {}
        self.operators: dict[str, str] = {}
        try:
            model = optimized_model(file.model)
        except QCompileError as error:
            self.verdict = Verdict(NAME, refused=PREFIX.sub("", error.what))
            return
        optimized = QuantizedFile(model)
        known = {node.name for node in file.nodes}
        for node in optimized.nodes:
            name = node.name if node.name in known else node.name.removesuffix(MERGED)
            if name in known:
                self.operators[name] = node.op_type
                self.integer[name] = on_integers(optimized, node)
        layers = [layer.node.name for layer in quantized(file)]
        counts = kernel_counts((node.name, node.op_type) for node in optimized.nodes)
        floating = [name for name in layers if not self.integer.get(name, False)]
        self.verdict = Verdict(NAME, kernels=counts, layers=len(layers), floating=floating)


def on_integers(optimized: QuantizedFile, node: NodeProto) -> bool:
    """Say whether a node of an optimized graph computes on integers."""
    return is_integer(node.op_type) or optimized.kinds.get(next(iter(node.input), "")) in CODES
