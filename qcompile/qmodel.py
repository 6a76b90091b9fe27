"""QModel: what flows through the passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.config import Config
from qcompile.data.dataset import Dataset
from qcompile.ir import Graph
from qcompile.ir.fingerprint import fingerprint
from qcompile.ir.store import Store
from qcompile.outcomes import Audit, Corrected, Outcome
from qcompile.quant.plan import Plan
from qcompile.targets.schema import Target

Arrays = dict[str, NDArray[Any]]


@dataclass
class Journal:
    """The list of what each pass did, with reasons: for people who read the report. What others go by has types."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    def note(self, by: str, what: str, **facts: Any) -> None:
        """Record that pass `by` did `what`; facts are plain JSON values."""
        self.entries.append({"pass": by, "what": what, **facts})

    def warn(self, by: str, text: str) -> None:
        """Record what the user should know before using the file, in one line."""
        self.note(by, "warning", text=text)

    @property
    def warnings(self) -> list[str]:
        """The texts of all warnings."""
        return [entry["text"] for entry in self.entries if entry["what"] == "warning"]

    def without(self, names: Collection[str]) -> Journal:
        """Return the entries of all passes but these: they run again."""
        return Journal([entry for entry in self.entries if entry["pass"] not in names])

    def by(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the entries of one pass."""
        return (entry for entry in self.entries if entry["pass"] == name)


@dataclass
class QModel:
    """A model on its way through the passes.

    `graph` is the float graph, normalised by the first passes; `source` the model as it was loaded (the float
    reference); `data` the calibration samples (None where only a plan is made); `held_back` samples to which nothing is
    fitted (the ranges of tensors count them too), so they judge, and compare the emitted file with the float model;
    `evaluation` labelled ones, `evaluation_as` opens the same with another preprocessing, where they pass one;
    `feed_alone` opens all of them again for a model that takes one at a time, and is told why; `kept_float` names nodes
    that a pass wants float, with its reason; `first_batch` a line about each input, once it was looked at; `served`
    stretches whose bits a trial found to serve them; `corrected` what correct-bias came to, `outcomes` what became of
    each piece in training; `emitted` the file's content once it exists, `audit` what was found out about it; `identity`
    the fingerprint of the model that was given, where `source` is another form of it; `store` holds the large weights
    of all of these.
    """

    graph: Graph
    source: onnx.ModelProto
    target: Target
    config: Config = field(default_factory=Config)
    data: Dataset | None = None
    held_back: Dataset | None = None
    evaluation: Dataset | None = None
    evaluation_as: Callable[[str], Dataset] | None = None
    feed_alone: Callable[[str], None] | None = None
    plan: Plan = field(default_factory=Plan)
    journal: Journal = field(default_factory=Journal)
    kept_float: dict[str, str] = field(default_factory=dict)
    first_batch: list[str] = field(default_factory=list)
    served: set[frozenset[str]] = field(default_factory=set)
    corrected: Corrected | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    emitted: onnx.ModelProto | None = None
    audit: Audit | None = None
    identity: str = ""
    store: Store = field(default_factory=Store)

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the model that was given: plans and states of training are for one."""
        return self.identity or fingerprint(self.source)


def generator(config: Config, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose: reproducible by seed, independent of the order of passes."""
    return seeded(config.seed, purpose)


def seeded(seed: int, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose and a seed."""
    return np.random.default_rng([seed, *purpose.encode()])
