"""What files compute whose runtime rounds nothing but quantizers: what layer-by-layer passes run pieces of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from onnx import TensorProto, helper

from qcompile.emission.writer import Writer
from qcompile.ir import node_proto
from qcompile.program.lower import Step

NO_KERNEL: Final = frozenset({"SpaceToDepth"})  # on uint8, before ONNX Runtime 1.28


@dataclass
class Simulation(Writer):
    """QuantizeLinear, Clip and DequantizeLinear around float operators, for ONNX Runtime without Q/DQ fusion.

    From the fake form for integer kernels it differs in that every operator is itself.
    """

    def codes(self, step: Step) -> None:
        """An operator on codes; where ONNX Runtime may have no kernel, on the same integers as float32."""
        node, (source,), (target,) = step.node, step.inputs[:1], step.outputs[:1]
        assert node is not None and source.quantizer is not None
        if node.op not in NO_KERNEL:
            super().codes(step)
            return
        given = self.add("Cast", [source.name], f"{target.name}_given", to=TensorProto.FLOAT)
        moved = self.constants.unique(f"{target.name}_moved")
        self.nodes.append(node_proto(node, [given], [moved]))
        container = helper.np_dtype_to_tensor_dtype(source.quantizer.grid.dtype)
        self.add("Cast", [moved], target.name, output=target.name, to=container)
