"""Programs as float graphs: every quantizer is Div, Round, Mul, Clip, every value a float32 on its grid.

QuantizeLinear and DequantizeLinear would say the same, but ONNX Runtime makes integer kernels of them, which round
sums too (docs/deployment.md says how far that is). Of these four it makes nothing else. Clip comes last, since a
product with a scale would be drawn into the MatMul behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import helper

from qcompile.backends.simulation import Simulation
from qcompile.emission.origin import NOTE
from qcompile.ir import Constant, node_proto
from qcompile.program.lower import Step, Value
from qcompile.program.operands import CLIPS, clip_bounds
from qcompile.quant.arithmetic import ends, fake_quantize

ROW = ("Div", "Round", "Mul", "Clip")  # the nodes of a quantizer
MARK = f"{NOTE}fake-quant, "  # begins the note of its Clip: codes and zero point, which a float graph does not tell


@dataclass
class AcademicWriter(Simulation):
    """Writes one program in float; a value that stands for codes is named as these would be."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fake = True

    def encode(self, step: Step) -> None:
        """Float32 -> float32 on a grid; a constant becomes an initializer."""
        (source,), (target,) = step.inputs, step.outputs
        tensor = self.tensors.get(source.name)
        if isinstance(tensor, Constant) and target.quantizer is not None:
            self.constants.put(fake_quantize(tensor.values, target.quantizer), target.name)
        else:
            self.codes_of(source.name, target)

    def decode(self, step: Step) -> None:
        """The same value under the tensor's own name, for readers that are float, and for outputs of the graph."""
        (source,), (target,) = step.inputs, step.outputs
        self.add("Identity", [source.name], target.name, output=target.name)

    def codes(self, step: Step) -> None:
        """An operator that leaves values on their grid, as it stands; a clip ends where the grid has a value."""
        node, source = step.node, step.inputs[0]
        assert node is not None and source.quantizer is not None
        outputs = [value.name for value in step.outputs]
        if node.op in CLIPS and (bounds := clip_bounds(node)):
            low, high = fake_quantize(np.array(bounds, np.float32), source.quantizer)
            inputs = [source.name, *self.stored((low, high), outputs[0])]
            self.nodes.append(helper.make_node("Clip", inputs, outputs, node.name))
        else:
            self.nodes.append(node_proto(node, [value.name for value in step.inputs] + self.rest(node), outputs))

    def codes_of(self, source: str, target: Value) -> None:
        """Write Div, Round, Mul and Clip: what QuantizeLinear, Clip and DequantizeLinear compute, bit for bit."""
        quantizer = target.quantizer
        assert quantizer is not None
        scale = self.constants.add(np.float32(quantizer.scale), f"{target.name}_scale")
        rest = {"Div": [scale], "Round": [], "Mul": [scale], "Clip": self.stored(ends(quantizer), target.name)}
        for op in ROW:
            output = target.name if op == ROW[-1] else self.constants.unique(f"{target.name}_{op.lower()}")
            self.nodes.append(helper.make_node(op, [source, *rest[op]], [output], self.name(f"{target.name}/{op}")))
            source = output
        self.nodes[-1].doc_string = f"{MARK}{quantizer.grid}, zero point {quantizer.zero_point}"

    def float_of(self, value: Value) -> str:
        """Return the name of a value: it is float already."""
        return value.name
