"""What a file computes, on codes: the reference for it, and what layer-by-layer passes run pieces of."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.emission.writer import Writer, bias_name
from qcompile.ir import Node
from qcompile.program.lower import Value
from qcompile.quant.params import WeightQuantizer


@dataclass
class Simulation(Writer):
    """QuantizeLinear, Clip and DequantizeLinear around float operators, for ONNX Runtime without Q/DQ fusion.

    From the fake form for integer kernels it differs in biases, which are not rounded, and in that every operator is
    itself.
    """

    def bias(self, node: Node, data: Value, weight: WeightQuantizer) -> list[str]:
        """Return the name of a layer's bias in float, or nothing where it has none."""
        bias = self.plan.biases.get(node.name)
        return [] if bias is None else [self.constants.add(bias, bias_name(node))]
