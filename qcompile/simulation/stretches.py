"""The error that a stretch of the graph makes by itself: of exact inputs, rounded as the plan says, against float."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qcompile.execution.fragment import boundary, fragment
from qcompile.ir import Constant, Graph, part_before, to_model
from qcompile.ir.store import Store, scratch_beside
from qcompile.program.dag import has_subgraph
from qcompile.program.lower import Kind, Program, Step, Value, lower
from qcompile.quant.plan import Plan
from qcompile.runtime.session import Session

REAL = "/real"  # suffix of the float reading of codes
# How many rows these give depends on values, or they draw numbers: what float and integers make is not comparable.
INCOMPARABLE = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Dropout", "Bernoulli", "Multinomial"})
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class OutputError:
    """Sums over one output of a stretch, by channel of `axis`: of the exact values' squares, and of the differences'.

    `variance` is that of all exact values about their one mean, as a sum; `is_output`: it is an output of the model.
    """

    tensor: str
    axis: int
    signal: Sums
    noise: Sums
    variance: float
    is_output: bool

    @property
    def share(self) -> float:
        """The squared error as a share of the variance; NaN where there is nothing to compare."""
        return float(self.noise.sum() / self.variance) if self.variance > 0 else float("nan")


@dataclass(frozen=True)
class _Output:
    """One output of a stretch as ONNX names: the exact tensor, its twin, and the sums that are read."""

    exact: str
    rounded: str
    axis: int
    rank: int
    is_output: bool

    @property
    def sums(self) -> tuple[str, str, str, str]:
        """Name the sums: of the squares, of the squared differences, of the values, and their number."""
        stem = f"{self.rounded}/{self.axis}"
        return f"{stem}/signal", f"{stem}/noise", f"{stem}/total", f"{stem}/count"


@dataclass(frozen=True)
class Stretches:
    """The float graph with stretches beside it, ready to run, and what is compared of each."""

    session: Session | None  # None: nothing is compared
    outputs: list[list[_Output]]

    def errors(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> list[list[OutputError]]:
        """Return, for each stretch, the errors of what others read of it or the model gives out.

        A stretch that cannot be compared has none.
        """
        if self.session is None:
            return [[] for _ in self.outputs]
        totals: dict[str, Sums] = {}
        wanted = [name for some in self.outputs for output in some for name in output.sums]
        for feeds in batches:
            for name, value in self.session.run(dict(feeds), wanted).items():
                totals[name] = _added(totals.get(name), np.asarray(value, np.float64).reshape(-1))
        return [[_error(output, totals) for output in some] for some in self.outputs]


def open_stretches(graph: Graph, plan: Plan, stretches: Sequence[Collection[str]], *, threads: int = 1) -> Stretches:
    """Load the float graph and beside it every stretch (a set of node names), rounded as `plan` says.

    The stretches run on the float graph's own values: no error comes from elsewhere. The weights are the session's
    own: neither graph nor plan is needed any more.
    """
    with scratch_beside(graph) as store:
        model, outputs = _beside(graph, plan, stretches, store)
        if not any(outputs):
            return Stretches(None, outputs)
        return Stretches(Session(model, threads=threads, fuse_qdq=False, packed=False), outputs)  # for few samples


def _added(total: Sums | None, found: Sums) -> Sums:
    """Add sums by channel; along an axis whose size differs from run to run there are no channels, and one sum."""
    if total is None:
        return found
    return total + found if total.shape == found.shape else np.array([total.sum() + found.sum()])


def _error(output: _Output, totals: Mapping[str, Sums]) -> OutputError:
    signal, noise, total, count = (totals[name] for name in output.sums)
    with np.errstate(invalid="ignore"):  # masks hold -Inf
        variance = float(signal.sum() - total[0] ** 2 / max(count[0], 1))
    return OutputError(output.exact, output.axis, signal, noise, variance, output.is_output)


def _beside(
    graph: Graph, plan: Plan, stretches: Sequence[Collection[str]], store: Store | None
) -> tuple[onnx.ModelProto, list[list[_Output]]]:
    """Return the float model with every stretch beside it, which gives out the sums, and the outputs by stretch."""
    program, outputs = lower(graph, plan), list[list[_Output]]()
    cuts = [_cut(graph, program, nodes) for nodes in stretches]
    read = (value.name for steps, values in cuts for step in steps for value in step.reads)
    given = {program.tensors.get(value.name, value.name) for _, values in cuts for value in values}
    model = to_model(part_before(graph, given.union(read)))
    constants = {name for name, tensor in graph.tensors().items() if isinstance(tensor, Constant)}
    for number, (steps, values) in enumerate(cuts):
        outputs.append([])
        if not values:
            continue
        real = [Step(Kind.DECODE, (value,), (Value(f"{value.name}{REAL}"),)) for value in values if value.quantizer]
        names = {value.name: f"{value.name}{REAL}" if value.quantizer else value.name for value in values}
        inputs = [value for value in boundary(steps)[0] if value.name and value.name not in constants]
        part = fragment(graph, plan, [*steps, *real], inputs, names.values(), store)
        renamed = _append(model.graph, part.graph, f"/{number}")
        for value in values:
            exact = program.tensors.get(value.name, value.name)
            outputs[-1] += _outputs(graph, exact, renamed[names[value.name]])
    for output in (item for some in outputs for item in some):
        _append_sums(model.graph, output)
    return model, outputs


def _cut(graph: Graph, program: Program, nodes: Collection[str]) -> tuple[list[Step], list[Value]]:
    """Return the steps of a stretch, with the quantizers in front of them, and what is compared of what they make."""
    tensors, results = graph.tensors(), {tensor.name for tensor in graph.outputs}
    inside, outside, made = list[Step](), list[Step](), set[str]()
    for step in program.steps:
        own = step.node.name in nodes if step.node is not None else any(v.name in made for v in step.inputs)
        (inside if own else outside).append(step)
        if own:
            made.update(value.name for value in step.outputs)
    found = [step.node for step in inside if step.node is not None]
    if any(node.op in INCOMPARABLE or has_subgraph(node) for node in found):
        return [], []
    read = {value.name for step in outside for value in step.reads} | results
    codes = {v.name: v for step in inside for v in step.reads if v.name not in made and v.quantizer is not None}
    front = [Step(Kind.ENCODE, (Value(program.tensors[name]),), (value,)) for name, value in codes.items()]
    compared = [
        value
        for step in inside
        for value in step.outputs
        if value.name in read and tensors[program.tensors.get(value.name, value.name)].dtype in (None, np.float32)
    ]
    return [*front, *inside], compared


def _append(model: onnx.GraphProto, part: onnx.GraphProto, suffix: str) -> dict[str, str]:
    """Append the nodes and constants of `part` under other names; return them by the old ones."""
    own = [name for node in part.node for name in node.output if name] + [item.name for item in part.initializer]
    renamed = {name: f"{name}{suffix}" for name in own}
    for node in part.node:
        copied = model.node.add()
        copied.CopyFrom(node)
        copied.name = ""
        for names in (copied.input, copied.output):
            names[:] = [renamed.get(name, name) for name in names]
    for item in part.initializer:
        constant = model.initializer.add()
        constant.CopyFrom(item)
        constant.name = renamed[item.name]
    return renamed


def _outputs(graph: Graph, exact: str, rounded: str) -> Iterator[_Output]:
    """Yield how one output is summed: over everything, and by channel where it is the model's own."""
    is_output = any(tensor.name == exact for tensor in graph.outputs)
    rank = len(graph.tensors()[exact].shape or ())
    yield _Output(exact, rounded, -1, 0, is_output)
    if is_output and rank > 1:
        yield _Output(exact, rounded, 1, rank, is_output)
    if is_output and rank > 2:
        yield _Output(exact, rounded, rank - 1, rank, is_output)


def _append_sums(graph: onnx.GraphProto, output: _Output) -> None:
    signal, noise, total, count = output.sums
    difference = f"{signal}/difference"
    rest = np.array([axis for axis in range(output.rank) if axis != output.axis], np.int64)
    graph.initializer.append(numpy_helper.from_array(rest, f"{signal}/axes"))
    axes = [f"{signal}/axes"] if output.rank else []
    graph.node.extend(
        [
            helper.make_node("Sub", [output.exact, output.rounded], [difference]),
            helper.make_node("ReduceSumSquare", [output.exact, *axes], [signal], keepdims=0),
            helper.make_node("ReduceSumSquare", [difference, *axes], [noise], keepdims=0),
            helper.make_node("ReduceSum", [output.exact], [total], keepdims=0),
            helper.make_node("Size", [output.exact], [count]),
        ]
    )
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in output.sums)
