"""Give every quantizer its numbers: activation ranges from samples, weights by rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.calibration.ranges import BY_BITS, Ranges
from qcompile.data.dataset import Dataset
from qcompile.errors import InputError, QCompileError
from qcompile.qmodel import QModel
from qcompile.runtime.session import Session
from qcompile.simulation.numbers import choose_numbers


@dataclass(frozen=True)
class Calibrate:
    """Choose scale and zero point of every placed quantizer.

    Activations: one streaming observer per tensor, all in one run of the float model over the samples; the method is
    that of `ranges`, by default max at 8 bits and the error search below (`qcompile.calibration.ranges`).
    The samples that are held back count too: nothing is fitted here, and where there are few samples, one of them that
    reaches further than all others would be clipped.
    """

    ranges: Ranges = BY_BITS
    name: ClassVar[str] = "calibrate"
    requires: ClassVar[tuple[str, ...]] = ("place-quantizers",)

    def run(self, model: QModel) -> int:
        """Fill `plan.quantizers`, `plan.weights` and `plan.biases`; return the number of quantizers and weights."""
        if model.data is None:
            raise InputError("no calibration data", remedy="give samples with --data, or ask for --random-data")
        samples, config = model.data.joined(model.held_back), model.config
        try:
            shared = choose_numbers(
                model.graph,
                model.plan,
                self.ranges,
                samples,
                target=model.target,
                batch=config.batch,
                threads=config.threads,
            )
        except QCompileError:
            run_source(model, samples)  # a sample that it cannot take either is no fault of ours
            raise
        for name in shared:
            model.journal.note(self.name, "one quantizer for all inputs", node=name)
        return len(model.plan.quantizers) + len(model.plan.weights)


def run_source(model: QModel, samples: Dataset) -> None:
    """Raise InputError where the source itself cannot run on one of these samples."""
    source = Session(model.source, threads=model.config.threads, fault=InputError)
    for feeds in samples.batches(1):
        source.run(feeds, [])
