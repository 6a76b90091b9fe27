"""Fold BatchNormalization and constant Mul and Add into the layers beside them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from qcompile.ir.affine import AFFINE, fold_before, fold_behind, obstacle, swap_mul_and_add
from qcompile.ir.protos import LAYERS
from qcompile.ir.rewrites import rewrite, rule
from qcompile.ir.shapes import infer_shapes
from qcompile.qmodel import QModel

RULES = (
    rule("folded into the layer in front", " ".join(LAYERS), fold_behind),
    rule("folded into the layers behind", " ".join(AFFINE), fold_before),
    rule("Mul folded past an Add into the layers behind", "Add", swap_mul_and_add),
)


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold per-channel affine maps into weights and biases, exactly.

    Into the layer in front if nobody else reads its output; into all the layers behind if none of them pads what is
    shifted. A BatchNormalization that stays runs in float, and the journal says why.
    """

    name: ClassVar[str] = "fold-batch-norm"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Fold; return the number of nodes that went."""
        graph = model.graph
        counts: Counter[str] = Counter()
        for item in RULES:  # in this order: a layer in front takes any shift, those behind only without padding
            counts += rewrite(graph, [item])
        if counts:
            infer_shapes(graph)
        for what, times in counts.items():
            model.journal.note(self.name, what, times=times)
        for node in graph.nodes:
            if node.op == "BatchNormalization":
                model.journal.note(self.name, "stays float", node=node.name, reason=obstacle(graph, node))
        return counts.total()
