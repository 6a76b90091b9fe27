"""What a plan computes, in two forms: exact integers, and float fake-quant."""

from __future__ import annotations

from typing import Literal, overload

import onnx

from qcompile.backends import fake_writer, reference
from qcompile.backends.reference import Reference
from qcompile.ir import Graph
from qcompile.program.lower import lower
from qcompile.quant.plan import Plan

__all__ = ["Reference", "simulate"]


@overload
def simulate(graph: Graph, plan: Plan, form: Literal["integer"]) -> Reference: ...
@overload
def simulate(graph: Graph, plan: Plan, form: Literal["float"]) -> onnx.ModelProto: ...
def simulate(graph: Graph, plan: Plan, form: Literal["integer", "float"]) -> Reference | onnx.ModelProto:
    """Return the simulation of a calibrated plan.

    "integer" is an interpreter with exact sums: it rounds as ONNX Runtime's kernels do where the plan is for these, and
    its codes equal those of the file; else once for each layer. "float" is an ONNX model with the file's own quantizers
    around float weights. Run the latter with `fuse_qdq=False`.
    """
    program = lower(graph, plan)
    if form == "integer":
        return reference(graph, plan, program)
    return fake_writer(graph, plan, program).model()
