"""Differentiation of ONNX graphs: the gradient of a loss as further nodes of the graph."""

from qcompile.autodiff import rules as rules  # which registers them
from qcompile.autodiff.engine import Differentiated, differentiate, gradients, record
from qcompile.autodiff.operators import Value
from qcompile.autodiff.registry import LOWERINGS, RULES, NoGradientRule, Rules, vjp
from qcompile.autodiff.tape import Node, Tape

__all__ = [
    "LOWERINGS",
    "RULES",
    "Differentiated",
    "NoGradientRule",
    "Node",
    "Rules",
    "Tape",
    "Value",
    "differentiate",
    "gradients",
    "record",
    "rules",
    "vjp",
]
