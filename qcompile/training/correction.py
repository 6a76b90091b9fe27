"""Affine correction of the layers of one piece, on what the trained pieces before it make."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from qcompile.calibration.affine import AffineKernels, Fit, Means, by_channel
from qcompile.emission.bias import stretched
from qcompile.program.lower import Step, Value
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
            slope, shift = _fit(sides, kernels, floats, before, step, some)
            _store(sides, step, slope, shift + _skip_error(sides, step, some))


def _fit(
    sides: Sides, kernels: AffineKernels, floats: Sequence[Step], before: Sequence[Step], layer: Step, places: Places
) -> tuple[Means, Means]:
    """Return slope and shift, each [C], of one layer behind the steps `before`."""
    assert layer.node is not None
    exact, raw = layer.node.outputs[0].name, layer.outputs[0].name + RAW
    steps = [*before, replace(layer, outputs=(Value(raw),))]
    runs = zip(
        sides.run(QUANTIZED, steps, [raw], places),
        sides.run(FLOAT, floats, [exact], places),
    )
    fit = Fit()
    for (_, quantized), (_, original) in runs:
        f, q = original[exact], quantized[raw]
        if f.shape == q.shape and f.size:  # which rows a data-dependent operator keeps may differ, or be none
            kernels.moments(by_channel(f), by_channel(q), fit)
    channels = len(sides.plan.weights[layer.node.name].scale)
    return fit.solve() if fit.weight else (np.ones(channels), np.zeros(channels))


def _skip_error(sides: Sides, layer: Step, places: Places) -> Means | float:
    """Return the mean error [C] of the other operand of the Add that this layer's output enters, or 0."""
    made = layer.outputs[0]
    readers = [step for step in sides.program().steps if any(value.name == made.name for value in step.inputs)]
    if len(readers) != 1 or readers[0].node is None or readers[0].node.op != "Add" or len(readers[0].inputs) != 2:
        return 0.0
    other = next((value for value in readers[0].inputs if value.name != made.name), made)
    exact, codes = (FLOAT, sides.tensors().get(other.name, "")), (QUANTIZED, other.name)
    if other.quantizer is None or exact not in sides.shapes or codes not in sides.shapes:
        return 0.0
    f, q = by_channel(sides.rows(exact, places)), by_channel(sides.rows(codes, places))
    mean = (q.mean((0, 2), dtype=np.float64) - other.quantizer.zero_point) * other.quantizer.scale
    error: Means = f.mean((0, 2), dtype=np.float64) - mean
    return error


def _store(sides: Sides, layer: Step, slope: Means, shift: Means) -> None:
    """Write the corrected scale and bias: y = a*(W x + old) + shift."""
    plan, data = sides.plan, layer.inputs[0].quantizer
    assert layer.node is not None and data is not None
    name = layer.node.name
    plan.weights[name], plan.biases[name] = stretched(
        plan.weights[name], plan.biases.get(name), slope, shift, data.scale
    )
