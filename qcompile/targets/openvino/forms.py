"""OpenVINO on a CPU: which products of two activations are faster on integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcompile.ir import Node, constant_value, consumers
from qcompile.quant.params import Quantizer

BETWEEN: Final = frozenset({"Add", "Mul", "Div"})  # the scale of scores, a mask


def _matmul(node: Node) -> str:
    if constant_value(node.inputs[1]) is not None:
        return ""
    readers = consumers(node.outputs[0])
    while len(readers) == 1 and readers[0].op in BETWEEN:
        readers = consumers(readers[0].outputs[0])
    scores = len(readers) == 1 and readers[0].op == "Softmax"
    return "" if scores else "of products of two activations those in front of a Softmax alone are faster on integers"


CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {"MatMul": _matmul}
DICTATED: Final[Mapping[str, Quantizer]] = {}
