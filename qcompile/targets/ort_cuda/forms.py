"""ONNX Runtime's CUDA provider: nothing that its table of facts does not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcompile.ir import Node
from qcompile.quant.params import Quantizer

CHECKS: Final[Mapping[str, Callable[[Node], str]]] = {}
DICTATED: Final[Mapping[str, Quantizer]] = {}
