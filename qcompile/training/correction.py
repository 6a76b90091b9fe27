"""Affine correction of the layers of one piece, on what the trained pieces before it make."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from qcompile.calibration.affine import AffineKernels
from qcompile.execution.twins import SAMPLES, Pair, before_quantizer, correction
from qcompile.program.lower import Step
from qcompile.quant.bias import take_up
from qcompile.training.sides import FLOAT, QUANTIZED, Places, Sides


def correct(
    sides: Sides, kernels: AffineKernels, nodes: Collection[str], numbers: Sequence[int], places: Places
) -> None:
    """Fit, layer after layer of a piece, the affine map from the quantized pre-activation to the float one.

    The piece is its `nodes` on the float side, the steps `numbers` on the quantized side; its float side has run.
    Scales and biases of the plan take it up. Where a layer's output enters a residual Add, the bias also takes up the
    mean error of the other operand, if that comes from before. Every layer sees what the corrected ones before it make.
    """
    some = np.asarray(places)[np.linspace(0, len(places) - 1, min(SAMPLES, len(places))).astype(int)]
    program, floats = sides.program(), sides.float_steps(nodes)

    def kept(exact: str, codes: str) -> Iterator[Pair]:
        if (FLOAT, exact) in sides.shapes and (QUANTIZED, codes) in sides.shapes:
            yield sides.rows((FLOAT, exact), some), sides.rows((QUANTIZED, codes), some), len(some)

    for index in numbers:
        step = program.steps[index]
        if step.is_layer and step.node is not None and step.node.name in sides.plan.weights:
            before = [program.steps[k] for k in numbers if k < index]
            weight = sides.plan.weights[step.node.name]
            pairs = _pairs(sides, floats, before, step, some)
            found = correction(program, step, weight, kernels, pairs, kept)
            take_up(sides.plan, step.node.name, step.input_scale, found.slope, found.shift)


def _pairs(sides: Sides, floats: Sequence[Step], before: Sequence[Step], layer: Step, places: Places) -> Iterator[Pair]:
    """Yield the output of one layer behind the steps `before`, float and quantized, part by part."""
    assert layer.node is not None
    last = before_quantizer(layer)
    exact, raw = layer.node.outputs[0].name, last.outputs[0].name
    runs = zip(sides.run(QUANTIZED, [*before, last], [raw], places), sides.run(FLOAT, floats, [exact], places))
    for (part, quantized), (_, original) in runs:
        yield original[exact], quantized[raw], len(part)
