"""TensorRT: which nodes would leave the grid of their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcompile.ir import Node
from qcompile.quant.params import Quantizer


def _resize(node: Node) -> str:
    return "" if node.attrs.get("mode", "nearest") == "nearest" else "interpolates: its values leave the grid"


CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {"Resize": _resize}
DICTATED: Final[Mapping[str, Quantizer]] = {}
