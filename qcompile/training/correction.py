"""Affine correction of the layers of one piece, on what the trained pieces before it make."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from qcompile.calibration.affine import AffineKernels, Correction, JudgedFit, Means
from qcompile.program.lower import Step, Value
from qcompile.quant.arithmetic import dequantize
from qcompile.quant.bias import take_up
from qcompile.training.sides import FLOAT, QUANTIZED, Places, Sides

SAMPLES = 256  # more change the result less than their choice does
RAW = "/raw"  # suffix of a layer's output before its quantizer


def correct(
    sides: Sides, kernels: AffineKernels, nodes: Collection[str], numbers: Sequence[int], places: Places
) -> None:
    """Fit, layer after layer of a piece, the affine map from the quantized pre-activation to the float one.

    The piece is its `nodes` on the float side, the steps `numbers` on the quantized side; its float side has run.
    Scales and biases of the plan take it up. Where a layer's output enters a residual Add, the bias also takes up the
    mean error of the other operand, if that comes from before. Every layer sees what the corrected ones before it make.
    """
    some = np.asarray(places)[np.linspace(0, len(places) - 1, min(SAMPLES, len(places))).astype(int)]
    program, floats = sides.program().steps, sides.float_steps(nodes)
    for index in numbers:
        step = program[index]
        if step.is_layer and step.node is not None and step.node.name in sides.plan.weights:
            before = [program[k] for k in numbers if k < index]
            found = _fit(sides, kernels, floats, before, step, some)
            shift = found.shift + _skip_error(sides, kernels, step, some)
            take_up(sides.plan, step.node.name, step.input_scale, found.slope, shift)


def _fit(
    sides: Sides, kernels: AffineKernels, floats: Sequence[Step], before: Sequence[Step], layer: Step, places: Places
) -> Correction:
    """Return the correction of one layer behind the steps `before`."""
    assert layer.node is not None
    exact, raw = layer.node.outputs[0].name, layer.outputs[0].name + RAW
    steps = [*before, replace(layer, outputs=(Value(raw),))]
    runs = zip(
        sides.run(QUANTIZED, steps, [raw], places),
        sides.run(FLOAT, floats, [exact], places),
    )
    fit = JudgedFit()
    for (part, quantized), (_, original) in runs:
        kernels.look(original[exact], quantized[raw], len(part), fit)
    return fit.solve(len(sides.plan.weights[layer.node.name].scale))


def _skip_error(sides: Sides, kernels: AffineKernels, layer: Step, places: Places) -> Means:
    """Return the mean error [C] of the other operand of the Add that this layer's output enters, or 0."""
    assert layer.node is not None
    program, fit = sides.program(), JudgedFit()
    other = program.residual_operand(layer.outputs[0])
    if other is not None and other.quantizer is not None:
        exact, codes = (FLOAT, program.tensors.get(other.name, "")), (QUANTIZED, other.name)
        if exact in sides.shapes and codes in sides.shapes:
            q = dequantize(sides.rows(codes, places), other.quantizer)
            kernels.look(sides.rows(exact, places), q, len(places), fit)
    return fit.solve(len(sides.plan.weights[layer.node.name].scale), slopes=False).shift
