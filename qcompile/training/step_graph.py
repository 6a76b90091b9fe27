"""The step graph: forward, loss, gradients and Adam of one region in one ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompile.autodiff import Tape, Value, gradients, record
from qcompile.errors import InputError, QCompileError
from qcompile.runtime.in_place import InPlace
from qcompile.training.recipe import ParameterKind, Settings
from qcompile.training.region import (
    EXPONENT,
    LOSS,
    RECONSTRUCTION,
    STRENGTH,
    STRETCH,
    UNIT_ERROR,
    Parameter,
    Region,
    UntrainableError,
)

Array = NDArray[Any]
DECAY1, DECAY2, EPSILON = 0.9, 0.999, 1e-8  # Adam (Kingma and Ba, 2015)
CORRECTION1, CORRECTION2 = "adam/correction1", "adam/correction2"


def rate_of(kind: ParameterKind) -> str:
    """Return the graph input that holds the learning rate of one kind of parameters."""
    return f"adam/rate_{kind}"


class StepGraph:
    """One region ready to be trained. Parameters and Adam's moments stay with the runtime from step to step.

    Raises NoGradientRule where an operator has no rule, UntrainableError where ONNX Runtime refuses graph or step.
    """

    def __init__(self, region: Region, threads: int, device: str = "cpu") -> None:
        self.region, self.steps = region, 0
        tape = record(_with_state(region))
        found = gradients(tape, {LOSS: 1.0}, list(region.parameters))
        updates: dict[str, str] = {}
        for name, gradient in found.items():
            updates |= _adam(tape, name, region.parameters[name], gradient)
        model = tape.assemble([RECONSTRUCTION, *updates.values()])
        self._start = {name: item.start for name, item in region.parameters.items()}
        for name in region.parameters:
            self._start |= dict.fromkeys(_moments(name), np.zeros_like(region.parameters[name].start))
        options = {"level": "extended", "threads": threads, "fuse_qdq": False, "provider": device}
        with _refusals():
            self._session = InPlace(model, self._start, updates, **options)

    @property
    def state(self) -> dict[str, Array]:
        """A copy of the parameters and of their moments."""
        return self._session.read()

    def reset(self) -> None:
        """Go back to the start."""
        self.steps = 0
        self._session.write(self._start)

    def run(self, feeds: dict[str, Array], settings: Settings, unit_error: float) -> float:
        """Take one step; return the squared error it saw. `unit_error` is that of the region before training."""
        self.steps += 1
        scalars = {rate_of(kind): rate for kind, rate in settings.rates.items()}
        scalars |= {STRENGTH: settings.strength, EXPONENT: settings.exponent, STRETCH: settings.stretch}
        scalars |= {UNIT_ERROR: unit_error}
        scalars |= {CORRECTION1: 1 / (1 - DECAY1**self.steps), CORRECTION2: (1 - DECAY2**self.steps) ** -0.5}
        given = {name: np.array(value, np.float32) for name, value in scalars.items()}
        with _refusals():
            return float(self._session.run({**feeds, **given})[RECONSTRUCTION])

    def close(self) -> None:
        """Nothing: the session goes when its owner does."""


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what ONNX Runtime cannot load or run, for want of a kernel or of memory, into UntrainableError."""
    try:
        yield
    except InputError:  # a device that is not to be had
        raise
    except QCompileError as error:
        raise UntrainableError(error.what) from error


def _moments(name: str) -> tuple[str, str]:
    return f"{name}/first", f"{name}/second"


def _with_state(region: Region) -> onnx.ModelProto:
    """Return the region's graph with inputs for Adam's moments and scalars."""
    model = onnx.ModelProto()
    model.CopyFrom(region.model)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((CORRECTION1, CORRECTION2, *map(rate_of, ParameterKind)), ())
    for name, item in region.parameters.items():
        shapes |= dict.fromkeys(_moments(name), item.start.shape)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    model.graph.input.extend(given)
    return model


def _adam(tape: Tape, name: str, item: Parameter, gradient: Value) -> dict[str, Value]:
    """Append one update; return what each part of the state becomes."""
    first, second = _moments(name)
    new_first = tape.add(tape.mul(first, DECAY1), tape.mul(gradient, 1 - DECAY1))
    new_second = tape.add(tape.mul(second, DECAY2), tape.mul(tape.mul(gradient, gradient), 1 - DECAY2))
    size = tape.add(tape.mul(tape.sqrt(new_second), CORRECTION2), EPSILON)
    rate = tape.mul(rate_of(item.kind), CORRECTION1)
    new = tape.sub(name, tape.mul(tape.div(new_first, size), rate))
    if np.isfinite(item.highest):
        new = tape.min(new, float(item.highest))
    return {name: new, first: new_first, second: new_second}
