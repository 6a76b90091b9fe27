"""Bring the graph into the form that every later pass expects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from qcompile.ir import topological
from qcompile.ir.canonical import CANONICAL
from qcompile.ir.fold import fold_constants
from qcompile.ir.names import name_nodes
from qcompile.ir.rewrites import rewrite, sweep
from qcompile.ir.shapes import infer_shapes
from qcompile.ir.simplify import SIMPLIFY, merge_equal_constants
from qcompile.qmodel import QModel

ROUNDS = 10  # each round can only uncover more to fold; two are usual


@dataclass(frozen=True)
class NormalizeGraph:
    """Names, order and shapes; constants folded, no-ops removed, exporters' spellings replaced by one form.

    The function stays the same to float rounding. What the rules do not know (control flow, custom operators) is left
    alone. The opset is settled before, in `ir.load.prepare`.
    """

    name: ClassVar[str] = "normalize-graph"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Normalise `model.graph`; return the number of rewrites."""
        graph = model.graph
        graph.nodes = topological(graph)
        counts: Counter[str] = Counter({"nodes named": name_nodes(graph)})
        for _ in range(ROUNDS):
            before = counts.total()
            counts["constants folded"] += fold_constants(graph)
            counts["dead nodes removed"] += sweep(graph)
            counts += rewrite(graph, (*SIMPLIFY, *CANONICAL))
            if counts.total() == before:
                break
            infer_shapes(graph)
        counts["equal constants merged"] += merge_equal_constants(graph)
        for what, times in counts.items():
            if times:
                model.journal.note(self.name, what, times=times)
        return counts.total()
