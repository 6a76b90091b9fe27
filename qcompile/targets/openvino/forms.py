"""OpenVINO on a CPU: which products are faster in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcompile.ir import Node, constant_value
from qcompile.quant.params import Quantizer


def _matmul(node: Node) -> str:
    weightless = constant_value(node.inputs[1]) is None
    return "a product of two activations is faster in float" if weightless else ""


CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {"MatMul": _matmul}
DICTATED: Final[Mapping[str, Quantizer]] = {}
