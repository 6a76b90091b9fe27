"""A few steps of a program as a model of their own: what layer-by-layer passes run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, helper

from qcompile.emission.qdq import Emitter
from qcompile.ir import Graph, Tensor
from qcompile.program.lower import Program, Step, Value
from qcompile.quant.plan import Plan


def fragment(
    graph: Graph, plan: Plan, steps: Sequence[Step], inputs: Iterable[Value], outputs: Iterable[str]
) -> onnx.ModelProto:
    """Return `steps` as a model in float arithmetic (fake-quant weights, the codes of activations as uint8).

    `inputs` are values made before the fragment: codes enter as uint8, tensors of the graph with their own type.
    """
    emitter = Emitter(graph, plan, Program(tuple(steps)), packing="none", fake=True)

    def kind(value: Value) -> int:
        return int(TensorProto.UINT8) if value.quantizer is not None else element_type(emitter.tensors[value.name])

    infos = [helper.make_tensor_value_info(value.name, kind(value), None) for value in inputs]
    return emitter.fragment(infos, [onnx.ValueInfoProto(name=name) for name in outputs])


def element_type(tensor: Tensor) -> int:
    """Return the type of a tensor's elements as ONNX writes it; float32 where it is unknown."""
    return int(TensorProto.FLOAT) if tensor.dtype is None else int(helper.np_dtype_to_tensor_dtype(tensor.dtype))


def boundary(steps: Sequence[Step]) -> tuple[list[Value], set[str]]:
    """Return the values that `steps` read from outside, and the names of those they make."""
    made: set[str] = set()
    read: dict[str, Value] = {}
    for step in steps:
        read.update({value.name: value for value in step.reads if value.name not in made and value.name not in read})
        made.update(value.name for value in step.outputs)
    return list(read.values()), made
