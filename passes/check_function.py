"""Compare the float graph, which is final here, with its source: what differs would be a fault of ours in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompile.errors import InputError, QCompileError
from qcompile.qmodel import QModel
from qcompile.runtime.equivalence import first_difference
from qcompile.runtime.session import Session


@dataclass(frozen=True)
class CheckFunction:
    """Run source and graph on the first sample. Raises QCompileError that names a tensor which differs by more than
    rounding may explain; nothing is checked without data."""

    name: ClassVar[str] = "check-function"
    requires: ClassVar[tuple[str, ...]] = ("normalize-graph",)

    def run(self, model: QModel) -> int:
        """Change nothing."""
        if model.data is None:
            return 0
        feeds, threads = next(iter(model.data.batches(1))), model.config.threads
        expected = Session(model.source, level="off", threads=threads, fault=InputError).run(feeds)
        found = first_difference(model.source, model.graph, feeds, expected, threads)
        if found is not None:
            raise QCompileError(
                f"qcompile changed what the model computes: tensor {found[0]!r} has a relative error of {found[1]:.2g}",
                remedy="please report it",
            )
        return 0
