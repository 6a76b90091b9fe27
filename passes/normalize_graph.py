"""Bring the graph into the form that every later pass expects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray
from onnx import ModelProto

from qcompile.data import input_infos, random_dataset
from qcompile.errors import QCompileError
from qcompile.ir import topological
from qcompile.ir.canonical import CANONICAL
from qcompile.ir.fold import fold_constants
from qcompile.ir.names import name_nodes
from qcompile.ir.rewrites import rewrite, sweep
from qcompile.ir.shape_reads import read_shapes_of_inputs
from qcompile.ir.shapes import infer_shapes, trace_shapes
from qcompile.ir.simplify import SIMPLIFY, merge_equal_constants
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session

ROUNDS = 10  # each round can only uncover more to fold; two are usual


@dataclass(frozen=True)
class NormalizeGraph:
    """Names, order and shapes; constants folded, no-ops removed, exporters' spellings replaced by one form.

    The function stays the same to float rounding. What the rules do not know (control flow, custom operators) is left
    alone. Shapes that cannot be inferred come from a traced run. The opset is settled before, in `ir.prepare`.
    """

    name: ClassVar[str] = "normalize-graph"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        """Normalise `model.graph`; return the number of rewrites."""
        graph = model.graph
        graph.nodes = topological(graph)
        counts: Counter[str] = Counter({"nodes named": name_nodes(graph), "shapes traced": traced(model)})
        for _ in range(ROUNDS):
            before = counts.total()
            counts["constants folded"] += fold_constants(graph)
            counts["dead nodes removed"] += sweep(graph)
            counts += rewrite(graph, (*SIMPLIFY, *CANONICAL))
            counts["shapes read from inputs"] += read_shapes_of_inputs(graph)
            if counts.total() == before:
                break
            infer_shapes(graph)
        counts["equal constants merged"] += merge_equal_constants(graph)
        for what, times in counts.items():
            if times:
                model.journal.note(self.name, what, times=times)
        return counts.total()


def traced(model: QModel) -> int:
    """Fill the shapes that inference does not find (behind custom operators, say) by running the model twice.

    The samples are the calibration's, one and then two of them, or random ones where only a plan is made. What cannot
    run here cannot run later either, and `check-data` says so.
    """

    def run(traceable: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        return Session(traceable, level="off", threads=model.config.threads).run(feeds)

    for sizes in ((1, 2), (1,)):  # some models take one at a time
        with suppress(QCompileError):
            data = model.data or random_dataset(input_infos(model.graph), 2, model.config.seed)
            return trace_shapes(model.graph, run, [next(data.batches(size)) for size in sizes])
    return 0
