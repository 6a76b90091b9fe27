"""The error that each layer makes by itself: of exact inputs, rounded as the plan says, against the float layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from qcompile.backends import fake_writer
from qcompile.execution.twins import as_float
from qcompile.ir import Constant, Graph, topological, value_info
from qcompile.ir.store import Store, scratch_beside
from qcompile.program.lower import Kind, Program, Step, Value, lower
from qcompile.quant.plan import Form, Plan
from qcompile.runtime.session import Session

BESIDE = "/alone"  # suffix of what a layer makes of exact inputs


@dataclass(frozen=True)
class _Layer:
    """A layer's name, its output in the float graph, and the same from rounded inputs and weights."""

    name: str
    exact: str
    rounded: str

    @property
    def sums(self) -> tuple[str, str]:
        """Name the outputs that give the sums of squares: of the exact values, and of the differences."""
        return f"{self.rounded}/signal", f"{self.rounded}/noise"


def layer_errors(
    graph: Graph, plan: Plan, batches: Iterable[Mapping[str, NDArray[Any]]], *, threads: int = 1
) -> dict[str, float]:
    """Return {layer: SQNR of its output in dB}, the worst first; infinite where it makes no error.

    The float graph runs, and beside it every layer on the float graph's own values: no error comes from another layer.
    What rounds an output to less than 8 bits is counted where it is read, since those are the reader's bits.
    """
    with scratch_beside(graph) as store:
        model, layers = beside(graph, plan, store)
        session = Session(model, threads=threads, fuse_qdq=False, packed=False)
    wanted = [name for layer in layers for name in layer.sums]
    totals = dict.fromkeys(wanted, 0.0)
    for feeds in batches:
        for name, value in session.run(feeds, wanted).items():
            totals[name] += float(value)
    found = {}
    with np.errstate(divide="ignore"):
        for layer in layers:
            signal, noise = (totals[name] for name in layer.sums)
            found[layer.name] = float(10 * np.log10(signal / noise)) if noise else float("inf")
    return dict(sorted(found.items(), key=lambda item: item[1]))


def beside(graph: Graph, plan: Plan, store: Store | None = None) -> tuple[onnx.ModelProto, list[_Layer]]:
    """Return a model that gives the sums of every layer, its large weights in `store`, and the layers."""
    program = lower(graph, plan)
    steps, layers = _steps(graph, program)
    part = Program(graph, tuple(steps.values()), program.tensors)
    writer = fake_writer(graph, plan, part, store)
    rounded = [onnx.ValueInfoProto(name=layer.rounded) for layer in layers]  # kept by being given out
    model = writer.fragment([value_info(tensor) for tensor in graph.inputs], rounded)
    _give_sums(model.graph, layers)
    return model, layers


def _steps(graph: Graph, program: Program) -> tuple[dict[str, Step], list[_Layer]]:
    """Return the steps of the float graph, and behind them those of every layer; and the layers."""
    tensors = graph.tensors()
    made = {value.name: step for step in program.steps for value in step.outputs}
    steps = {f"float {node.name}": as_float(node, tensors.keys()) for node in topological(graph)}
    layers = []
    for step in program.steps:
        if step.form is not Form.COMPUTE or step.node is None:
            continue
        for value in (item for item in step.inputs if item.quantizer is not None):
            source = made[value.name].inputs[0].name
            origin = source if isinstance(tensors.get(source), Constant) else program.tensors[value.name]
            steps[value.name] = Step(Kind.ENCODE, (Value(origin),), (value,))
        target = step.outputs[0]
        wide = target.quantizer is not None and not target.quantizer.grid.is_narrow
        output = (
            Value(f"{target.name}{BESIDE}", target.quantizer, target.key) if wide else Value(f"{target.name}{BESIDE}")
        )
        steps[output.name] = replace(step, outputs=(output,))
        if wide:
            real = Value(f"{output.name}/real")
            steps[real.name] = Step(Kind.DECODE, (output,), (real,))
            layers.append(_Layer(step.node.name, program.tensors[target.name], real.name))
        else:
            layers.append(_Layer(step.node.name, step.node.outputs[0].name, output.name))
    return steps, layers


def _give_sums(graph: onnx.GraphProto, layers: Sequence[_Layer]) -> None:
    """Let a model give out the sums of squares of every layer, and nothing else."""
    for node in graph.node:
        node.name = ""  # every layer stands there twice
    del graph.output[:]
    for layer in layers:
        difference, (signal, noise) = f"{layer.rounded}/difference", layer.sums
        graph.node.append(helper.make_node("Sub", [layer.exact, layer.rounded], [difference]))
        for source, total in ((layer.exact, signal), (difference, noise)):
            graph.node.append(helper.make_node("ReduceSumSquare", [source], [total], keepdims=0))
            graph.output.append(onnx.ValueInfoProto(name=total))
