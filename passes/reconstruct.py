"""Train rounding, scales and biases of each unit so that its output comes back to the float model's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

from qcompile.qmodel import QModel
from qcompile.training.pieces import cut_layers, join_units
from qcompile.training.recipe import DEFAULT, Training
from qcompile.training.reconstruction import reconstruct
from qcompile.training.work_dir import open_work_dir


@dataclass(frozen=True)
class Reconstruct:
    """Train region after region as `training` says; each sees what the trained ones before it make.

    A region is what `plan.regions` says, each unit by itself without it; for adaround each layer. One that training
    does not make better on samples held back from it keeps its affine correction alone, or stays as it was; one that
    cannot be trained (an operator without a differentiation rule, a loss that is not finite) likewise, with a note.
    """

    training: Training = DEFAULT
    name: ClassVar[str] = "reconstruct"
    requires: ClassVar[tuple[str, ...]] = ("calibrate", "partition-units")

    def run(self, model: QModel) -> int:
        """Train every region with weights; return how many came out better."""
        by_layer = self.training.method == "adaround"
        pieces = cut_layers(model.graph) if by_layer else join_units(model.plan, model.plan.trained_together())
        model.outcomes = []
        for outcome in reconstruct(model, pieces, self.training, work_dir=open_work_dir(model)):
            model.outcomes.append(outcome)
            facts = {key: value for key, value in asdict(outcome).items() if value not in (None, "")}
            del facts["cpu_seconds"]  # the journal of two runs is the same
            model.journal.note(self.name, facts.pop("what"), unit=facts.pop("piece"), **facts)
        return sum(outcome.trained for outcome in model.outcomes)
