"""The step graph: forward, loss, gradients and Adam of one region in one ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcompile.autodiff import gradients, record
from qcompile.runtime.session import Session
from qcompile.training.recipe import Kind, Settings
from qcompile.training.region import EXPONENT, LOSS, RECONSTRUCTION, STRENGTH, UNIT_ERROR, Region

Array = NDArray[Any]
DECAY1, DECAY2, EPSILON = 0.9, 0.999, 1e-8  # Adam (Kingma and Ba, 2015)
CORRECTION1, CORRECTION2 = "adam/correction1", "adam/correction2"


def rate_of(kind: Kind) -> str:
    """Return the graph input that holds the learning rate of one kind of parameters."""
    return f"adam/rate_{kind}"


@dataclass
class StepGraph:
    """One region ready to be trained: its session, the shapes of its masks, and the state of its parameters."""

    region: Region
    threads: int
    state: dict[str, Array] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        region = self.region
        scalars = [CORRECTION1, CORRECTION2, *map(rate_of, Kind)]
        moments = [f"{name}/{which}" for name in region.parameters for which in ("first", "second")]
        graph = region.model.graph
        graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, []) for name in scalars)
        for name in moments:
            shape = region.parameters[name.rpartition("/")[0]].start.shape
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        tape = record(region.model)
        found = gradients(tape, {LOSS: 1.0}, list(region.parameters))
        self.outputs: dict[str, str] = {}
        for name, item in region.parameters.items():
            gradient = found[name]
            first = tape.add(tape.mul(f"{name}/first", DECAY1), tape.mul(gradient, 1 - DECAY1))
            square = tape.mul(gradient, gradient)
            second = tape.add(tape.mul(f"{name}/second", DECAY2), tape.mul(square, 1 - DECAY2))
            size = tape.add(tape.mul(tape.sqrt(second), CORRECTION2), EPSILON)
            change = tape.div(tape.mul(tape.mul(first, rate_of(item.kind)), CORRECTION1), size)
            self.outputs |= {name: tape.sub(name, change), f"{name}/first": first, f"{name}/second": second}
        self.reset()
        self.session = Session(tape.assemble([LOSS, RECONSTRUCTION, *self.outputs.values()]), level="extended",
                               threads=self.threads, fuse_qdq=False)  # fmt: skip

    def reset(self) -> None:
        """Go back to the start."""
        self.steps, self.state = 0, {}
        for name, item in self.region.parameters.items():
            zeros = np.zeros_like(item.start)
            self.state |= {name: item.start, f"{name}/first": zeros, f"{name}/second": zeros}

    def run(self, feeds: dict[str, Array], settings: Settings, unit_error: float) -> float:
        """Take one step; return the squared error it saw. `unit_error` is that of the region before training."""
        self.steps += 1
        scalars = {rate_of(kind): rate for kind, rate in settings.rates.items()}
        scalars |= {STRENGTH: settings.strength, EXPONENT: settings.exponent, UNIT_ERROR: unit_error}
        scalars |= {CORRECTION1: 1 / (1 - DECAY1**self.steps), CORRECTION2: (1 - DECAY2**self.steps) ** -0.5}
        given = {name: np.array(value, np.float32) for name, value in scalars.items()}
        results = self.session.run({**feeds, **given, **self.state})
        self.state = {name: np.asarray(results[output]) for name, output in self.outputs.items()}
        for name, item in self.region.parameters.items():
            if np.isfinite(item.highest):
                self.state[name] = np.asarray(np.minimum(self.state[name], np.float32(item.highest)))
        return float(results[RECONSTRUCTION])
