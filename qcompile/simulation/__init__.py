"""What a plan computes, in two forms: exact integers, and float fake-quant."""

from __future__ import annotations

from typing import Literal, overload

import onnx

from qcompile.backends import fake_writer
from qcompile.backends.ort_cpu.reference import IntegerReference
from qcompile.ir import Graph
from qcompile.program.lower import lower
from qcompile.quant.plan import Plan

__all__ = ["IntegerReference", "simulate"]


@overload
def simulate(graph: Graph, plan: Plan, form: Literal["integer"]) -> IntegerReference: ...
@overload
def simulate(graph: Graph, plan: Plan, form: Literal["float"]) -> onnx.ModelProto: ...
def simulate(graph: Graph, plan: Plan, form: Literal["integer", "float"]) -> IntegerReference | onnx.ModelProto:
    """Return the simulation of a calibrated plan.

    "integer" is an interpreter of ONNX Runtime's integer kernels, whose codes equal those of the file for them; "float"
    an ONNX model with the file's own quantizers around float weights. Run the latter with `fuse_qdq=False`.
    """
    program = lower(graph, plan)
    if form == "integer":
        return IntegerReference(graph, plan, program)
    return fake_writer(graph, plan, program).model()
