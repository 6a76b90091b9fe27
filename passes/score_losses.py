"""Measure how much error training leaves in each unit, by a short first run of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from qcompile.qmodel import QModel
from qcompile.training.pieces import join_units
from qcompile.training.recipe import SCORING, Training
from qcompile.training.reconstruction import reconstruct
from qcompile.training.work_dir import open_work_dir


@dataclass(frozen=True)
class ScoreLosses:
    """Fill `plan.losses`: the squared error of each unit's output after a short training, relative to its square.

    Every unit is trained by itself, in order, for the steps of `training`, each on what the trained
    ones before it make; nothing but the errors is kept. They are those on samples that were not trained on. A unit that
    cannot be trained has none. With the state of an earlier run to go on from, the losses are those in it.

    References
    ----------
    Ma et al., "Solving Oscillation Problem in Post-Training Quantization Through a Theoretical Perspective", CVPR 2023
    (its data-dependent capacity).
    """

    training: Training = SCORING
    name: ClassVar[str] = "score-losses"
    requires: ClassVar[tuple[str, ...]] = ("calibrate", "partition-units")

    def run(self, model: QModel) -> int:
        """Write the losses into the plan; return how many units have one."""
        model.plan.losses = _known(model) or self._measured(model)
        return len(model.plan.losses)

    def _measured(self, model: QModel) -> dict[str, float]:
        copied = replace(model, plan=copy.deepcopy(model.plan))
        units = join_units(copied.plan, [(unit.name,) for unit in copied.plan.units])
        losses = {}
        for outcome in reconstruct(copied, units, self.training, title="score losses"):
            if outcome.reason or outcome.after is None:
                model.journal.note(self.name, "no loss", unit=outcome.piece, reason=outcome.reason)
            else:
                losses[outcome.piece] = outcome.after
        return losses


def _known(model: QModel) -> dict[str, float]:
    """Return the losses in the state that the configuration asks to go on from, if there are any."""
    folder = open_work_dir(model)
    return folder.plan(model).losses if folder is not None and folder.state else {}
