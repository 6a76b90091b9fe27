"""The pass manager: runs passes in order, checks what they require, verifies the graph after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, Protocol

from threadpoolctl import threadpool_limits

from qcompile.errors import InputError, QCompileError, expect
from qcompile.ir import Variable
from qcompile.ir.verify import verify
from qcompile.memory import peak_memory, release_freed_memory
from qcompile.qmodel import QModel
from qcompile.quant.plan import Edge, Form

PLACES = "place-quantizers"  # the pass that makes quantizers of the bits that the plan says


class Pass(Protocol):
    """One step of the compiler. `run` changes the model's graph or plan in place and returns how much it changed.

    `name` is kebab-case; `requires` names passes that must have run before. A pass knows nothing of the command line,
    of files or of other passes.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]]

    def run(self, model: QModel) -> int:
        """Change `model`; return the number of changes (0: nothing applied)."""


@dataclass(frozen=True)
class PassRun:
    """What the manager saw of one pass: changes, seconds of wall and CPU time, the process's peak memory at its end."""

    name: str
    changed: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def verify_bits(model: QModel, *, after: str) -> None:
    """Raise QCompileError where a compute node has other bits than its quantizers: they would have no effect."""
    plan = model.plan
    for node in model.graph.nodes:
        placed = plan.nodes.get(node.name)
        if placed is None or placed.form is not Form.COMPUTE:
            continue
        edges = (Edge(item.name, node.name) for item in node.inputs[:2] if isinstance(item, Variable))
        keys = [plan.reads[edge] for edge in edges if edge in plan.reads]
        specs = [plan.specs[key] for key in keys if key in plan.specs]
        found = [("input", placed.input_bits, spec.bits) for spec in specs if not spec.serves(placed.input_bits)]
        if node.name in plan.weights:
            found.append(("weight", placed.weight_bits, plan.weights[node.name].bits))
        for what, asked, bits in found:
            if asked != bits:
                text = f"pass {after!r} leaves node {node.name!r} with {asked} {what} bits, but a quantizer of {bits}"
                raise QCompileError(text, remedy="put it before place-quantizers, or change the quantizers in it too")


Watch = Callable[[PassRun, QModel], None]


class PassManager:
    """Run `passes` on a model, in order."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes: Sequence[Pass] = tuple(passes)
        seen: set[str] = set()
        for item in self.passes:
            if isinstance(item, type) or not all(hasattr(item, name) for name in ("name", "requires", "run")):
                what = f"{getattr(item, '__name__', repr(item))} is no pass"
                raise InputError(what, remedy="give objects with name, requires and run, such as Calibrate()")
            if isinstance(item.requires, str):
                what = f"pass {item.name!r} requires a text, {item.requires!r}"
                raise InputError(what, remedy=f"write requires = ({item.requires!r},)")
            if missing := [name for name in item.requires if name not in seen]:
                raise QCompileError(
                    f"pass {item.name!r} requires {', '.join(map(repr, missing))} before it",
                    remedy="put it earlier in the list of passes",
                )
            seen.add(item.name)

    def run(self, model: QModel, watch: Watch | None = None) -> list[PassRun]:
        """Run every pass on `model` in place; return what each did and took. The graph is verified after each.

        `watch` is called after each pass, with what it took and the model as it left it.
        """
        expect(model, QModel, "model", "give what qcompile.open_model returned")
        runs = []
        with threadpool_limits(1, user_api="blas"):  # with more, numpy's sums and with them codes depend on the machine
            for place, item in enumerate(self.passes):
                placed = not any(later.name == PLACES for later in self.passes[place + 1 :])
                runs.append(_run(item, model, placed))
                if watch is not None:
                    watch(runs[-1], model)
        return runs


def _run(item: Pass, model: QModel, placed: bool) -> PassRun:
    """Run one pass and verify what it leaves; `placed`: quantizers stand already, or no pass will place any."""
    wall, cpu = time.perf_counter(), time.process_time()
    release_freed_memory()
    config = model.config
    changed = item.run(model)
    expect(changed, Integral, f"result of pass {item.name!r}", "return the number of changes, 0 for none")
    if model.config != config:
        what = f"pass {item.name!r} changes the configuration, which decides nothing"
        remedy = "change what the passes behind it are built with, or bits in the plan, behind assign-bits"
        raise QCompileError(what, remedy=remedy)
    model.store.hold_all(model.graph)
    verify(model.graph, after=item.name)
    if placed:
        verify_bits(model, after=item.name)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return PassRun(item.name, changed, wall, cpu, peak_memory())
