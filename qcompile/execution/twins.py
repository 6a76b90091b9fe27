"""The float graph beside the quantized program on the same samples: how far apart a layer is on both sides.

Who runs them, batch after batch or sample by sample, hands over pairs of values: exact ones, those of the quantized
side, and the number of samples in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from qcompile.calibration.affine import AffineKernels, Correction, JudgedFit, Means
from qcompile.ir import Graph, Node, captured_names, topological
from qcompile.program.lower import Kind, Program, Step, Value
from qcompile.quant.arithmetic import dequantize
from qcompile.quant.params import Quantizer, WeightQuantizer
from qcompile.quant.plan import Form

SAMPLES = 256  # that corrections are fitted to: more change the result less than their choice does
RAW = "/raw"  # suffix of a layer's output before its quantizer
Pair = tuple[NDArray[Any], NDArray[Any], int]
KeptPairs = Callable[[str, str], Iterable[Pair]]  # kept under the names of a tensor and of its codes, if both are


def float_steps(graph: Graph) -> list[Step]:
    """Return the nodes of the float graph, in topological order, as steps that leave them as they are."""
    known = graph.tensors().keys()
    return [as_float(node, known) for node in topological(graph)]


def as_float(node: Node, known: Set[str]) -> Step:
    """Return a node as a step that leaves it as it is; it also reads what its subgraphs capture of `known` tensors."""
    own = [tensor.name for tensor in node.inputs]
    read = [*own, *sorted(captured_names(node) & known - set(own))]
    outputs = tuple(Value(tensor.name) for tensor in node.outputs)
    return Step(Kind.RUN, tuple(map(Value, read)), outputs, (node,), Form.FLOAT)


def before_quantizer(layer: Step) -> Step:
    """Return a layer that gives its output as it is before the quantizer."""
    return replace(layer, outputs=(Value(layer.outputs[0].name + RAW),))


def correction(
    program: Program,
    layer: Step,
    weight: WeightQuantizer,
    kernels: AffineKernels,
    pairs: Iterable[Pair],
    kept: KeptPairs,
) -> Correction:
    """Return slope and shift [C] that bring a layer with this weight back to float.

    They are fitted to `pairs` of its output before the quantizer, by what goes through that; slopes are 1 where scales
    are not free. Where the output enters a residual Add, the shift also takes up the mean error of the other operand,
    if it is kept.
    """
    channels = weight.channels
    found = _fit(kernels, pairs, layer.outputs[0].quantizer).solve(channels, slopes=weight.spec.is_free)
    return replace(found, shift=found.shift + _skip_error(program, layer, channels, kernels, kept))


def _skip_error(program: Program, layer: Step, channels: int, kernels: AffineKernels, kept: KeptPairs) -> Means:
    """Return the mean error [C] of the other operand of the Add that this layer's output enters, or 0."""
    other = program.residual_operand(layer.outputs[0])
    if other is None or other.quantizer is None:
        return JudgedFit().solve(channels, slopes=False).shift
    quantizer = other.quantizer
    both = kept(program.tensors.get(other.name, ""), other.name)
    pairs = ((exact, dequantize(codes, quantizer), count) for exact, codes, count in both)
    return _fit(kernels, pairs).solve(channels, slopes=False).shift


def _fit(kernels: AffineKernels, pairs: Iterable[Pair], behind: Quantizer | None = None) -> JudgedFit:
    fit = JudgedFit(behind)
    for exact, quantized, count in pairs:
        kernels.look(exact, quantized, count, fit)
    return fit
