"""Which nodes of a program ONNX Runtime's kernels of x86-64, Arm and WebAssembly could round differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.backends.ort_cpu.elementwise import Operation, SigmoidTable
from qcompile.backends.ort_cpu.slopes import slope_codes
from qcompile.emission.doubts import Doubt
from qcompile.ir import Constant
from qcompile.program.lower import Program, Step
from qcompile.quant.arithmetic import quantize
from qcompile.quant.plan import Edge, Form
from qcompile.targets.ort_cpu.forms import HARD_SIGMOID

GATE, SLOPES = Edge("(gate of a HardSwish)"), Edge("(slopes of a PRelu)")  # keys of their quantizers


def doubtful_nodes(program: Program) -> Iterator[Doubt]:
    """Yield the nodes whose kernels differ between processors, in executable order."""
    for step in program.steps:
        if step.form is not Form.ARITHMETIC or step.node is None:
            continue
        keys = [value.key for value in (*step.inputs, *step.outputs) if value.key is not None]
        name, op = step.node.name, step.node.op
        if op == "Sigmoid":
            yield Doubt(name, tuple(keys), SigmoidTable())
        elif op in ("Add", "Mul"):
            yield Doubt(name, tuple(keys), Operation.of_all_pairs(op, *codes_of(step)))
        elif op == "HardSwish":  # x times its gate
            product = Operation.of_all_pairs("Mul", codes_of(step)[0], HARD_SIGMOID.grid.codes)
            yield Doubt(name, (keys[0], GATE, keys[1]), product, {GATE: HARD_SIGMOID})
        elif op == "PRelu":
            yield from doubts_of_prelu(step, *keys)


def doubts_of_prelu(step: Step, source: Edge, target: Edge) -> Iterator[Doubt]:
    """Yield the product of what is below 0 with the slopes, and the sum of that with what is above 0."""
    node, given, made = step.node, step.inputs[0].quantizer, step.outputs[0].quantizer
    assert node is not None and given is not None and made is not None
    slopes, quantizer = slope_codes(node)
    codes = given.grid.codes
    below, above = codes[codes <= given.zero_point], codes[codes >= given.zero_point]
    product = Operation.of_all_pairs("Mul", below, np.unique(slopes))
    yield Doubt(node.name, (source, SLOPES, target), product, {SLOPES: quantizer})
    nothing = Operation("Add", above, np.full_like(above, made.zero_point))
    yield Doubt(node.name, (source, target, target), nothing)


def codes_of(step: Step) -> list[NDArray[Any]]:
    """Return the codes that each operand of a step can take: those of its grid, or of a constant."""
    assert step.node is not None
    found = []
    for tensor, value in zip(step.node.inputs, step.inputs):
        assert value.quantizer is not None
        grid = value.quantizer.grid.codes
        constant = isinstance(tensor, Constant)
        found.append(np.unique(quantize(tensor.values, value.quantizer)) if constant else grid)
    return found
