"""Engines that train a region: ONNX Runtime itself, or its training package in an environment of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from qcompile.runtime.session import require_provider
from qcompile.training.layout import blocked
from qcompile.training.ort_training import PackageTrainer, find_python
from qcompile.training.recipe import Settings, Training
from qcompile.training.region import Region
from qcompile.training.step_graph import StepGraph

Array = NDArray[Any]


class Trainer(Protocol):
    """One region ready to be trained. `state` maps the name of every parameter to its value, and may hold more."""

    region: Region

    @property
    def state(self) -> Mapping[str, Array]:
        """The parameters as they stand."""

    def reset(self) -> None:
        """Go back to the start."""

    def run(self, feeds: dict[str, Array], settings: Settings, unit_error: float) -> float:
        """Take one step; return the squared error it saw. `unit_error` is that of the region before training."""

    def close(self) -> None:
        """Let go of memory and processes; the trainer is of no more use."""


def open_trainer(region: Region, training: Training, threads: int) -> Trainer:
    """Return what trains `region` with the engine and on the device that are asked for; close it at the end.

    Raises NoGradientRule or UntrainableError if the engine cannot differentiate the region.
    """
    if training.engine == "ort-training":
        return PackageTrainer(region, find_python(), threads, training.device)
    fast = blocked(region) if training.device == "cpu" else region
    return StepGraph(fast, threads, training.device)


def check_engine(training: Training) -> None:
    """Raise InputError unless the engine and the device that are asked for are there: before any long work."""
    if training.engine == "ort-training":
        PackageTrainer.check(find_python(), training.device)
    else:
        require_provider(training.device)
