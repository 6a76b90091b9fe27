"""QModel: what flows through the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from qcompile.quant.plan import Plan
from qcompile.targets.schema import Target

Arrays = dict[str, NDArray[Any]]


@dataclass
class Journal:
    """The machine-readable list of what each pass did, with reasons: the source of audit and report."""

    entries: list[dict[str, Any]] = field(default_factory=list)

    def note(self, by: str, what: str, **facts: Any) -> None:
        """Record that pass `by` did `what`; facts are plain JSON values."""
        self.entries.append({"pass": by, "what": what, **facts})

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
    that a pass wants float, with its reason; `emitted` the file's content once it exists; `identity` the fingerprint of
    the model that was given, where `source` is another form of it; `store` holds the large weights of all of these.
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
    emitted: onnx.ModelProto | None = None
    identity: str = ""
    store: Store = field(default_factory=Store)

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the model that was given: plans and states of training are for one."""
        return self.identity or fingerprint(self.source)


def generator(config: Config, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose: reproducible by seed, independent of the order of passes."""
    return np.random.default_rng([config.seed, *purpose.encode()])
