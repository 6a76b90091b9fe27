"""Files of QuantizeLinear and DequantizeLinear around float operators, as the facts of a target have them."""

from qcompile.backends.qdq.rules import RULES

__all__ = ["RULES"]
