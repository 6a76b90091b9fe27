"""Files for runtimes, by target: a writer of programs, the rules that its files obey, what its kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import onnx

from qcompile.backends import academic, ort_cpu, qdq
from qcompile.backends.reference import Reference
from qcompile.backends.simulation import Simulation
from qcompile.emission.doubts import Doubt
from qcompile.emission.emitted import Emitted, Rule, Violation
from qcompile.emission.writer import Writer
from qcompile.ir import Graph
from qcompile.ir.store import Store
from qcompile.program.lower import Program
from qcompile.quant.plan import Plan
from qcompile.targets.schema import Target


@dataclass(frozen=True)
class Backend:
    """What is known of files of one kind.

    `writer` writes a program; `rules` look at the file and yield where it breaks them; `doubts` finds in a program the
    nodes that the runtime rounds differently on different processors.
    """

    writer: type[Writer]
    rules: Mapping[str, Rule]
    doubts: Callable[[Program], Iterable[Doubt]] = lambda program: ()


BACKENDS: Final[Mapping[str, Backend]] = {
    "ort-cpu": Backend(ort_cpu.OrtWriter, ort_cpu.RULES, ort_cpu.doubtful_nodes),
    "qdq": Backend(Writer, qdq.RULES),
    "academic": Backend(academic.AcademicWriter, academic.RULES),
}
REFERENCES: Final[Mapping[str, type[Reference]]] = {"ort-cpu": ort_cpu.IntegerReference}  # others round but once
FAKE: Final[Mapping[str, type[Writer]]] = {"ort-cpu": ort_cpu.OrtWriter}  # whose kernels round more than quantizers do


def backend_of(target: Target) -> Backend:
    """Return the backend of a target."""
    return BACKENDS[target.backend]


def fake_writer(graph: Graph, plan: Plan, program: Program, store: Store | None = None) -> Writer:
    """Return what writes `program` in float arithmetic, as the target of `plan` has it rounded.

    That is fake-quant weights, and QuantizeLinear and DequantizeLinear around float operators: to be run in ONNX
    Runtime without Q/DQ fusion.
    """
    write = FAKE.get(plan.backend, Simulation)
    return write(graph, plan, program, packing=(), biases=plan.bias, fake=True, store=store)


def reference(graph: Graph, plan: Plan, program: Program) -> Reference:
    """Return what interprets `program` with exact integers, rounded as the target of `plan` has it."""
    return REFERENCES.get(plan.backend, Reference)(graph, plan, program)


def check(model: onnx.ModelProto, target: Target, planned: Collection[str] = ()) -> list[Violation]:
    """Return every violation in an emitted model, in the order of the target's rules.

    Compute nodes between DequantizeLinear and with a quantized weight are held to the rules always; `planned` names
    further nodes that are meant to run on integer kernels (an Add between floats is nobody's fault otherwise).
    """
    emitted = Emitted(model, target, planned)
    return [Violation(name, *finding) for name, rule in backend_of(target).rules.items() for finding in rule(emitted)]
