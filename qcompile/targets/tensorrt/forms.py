"""TensorRT: which sums it computes with a layer in one kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcompile.ir import Node, consumers, producer
from qcompile.ir.protos import LAYERS
from qcompile.program.operands import data_inputs
from qcompile.quant.params import Quantizer


def _resize(node: Node) -> str:
    return "" if node.attrs.get("mode", "nearest") == "nearest" else "interpolates: its values leave the grid"


def _sum(node: Node) -> str:
    """A residual sum: a layer makes one of two operands for it alone."""
    made_by = [producer(tensor) for tensor in data_inputs(node) if len(consumers(tensor)) == 1]
    layers = [maker for maker in made_by if maker is not None and maker.op in LAYERS]
    return "" if layers and len(data_inputs(node)) == 2 else "no layer in front of it whose kernel could add"


CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {"Add": _sum, "Resize": _resize}
DICTATED: Final[Mapping[str, Quantizer]] = {}
