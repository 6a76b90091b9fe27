"""A session that is run again and again, its state staying with the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.errors import QCompileError
from qcompile.runtime.session import Session

Array = NDArray[Any]


class InPlace:
    """Runs a model of which some outputs are the next values of inputs, written over them.

    `state` holds the start values of inputs that stay with the runtime; `updates` maps those that are written over to
    their outputs. All other outputs are results.
    Raises QCompileError where an old value is still read when the new one may be there already.
    """

    def __init__(
        self, model: onnx.ModelProto, state: Mapping[str, Array], updates: Mapping[str, str], **options: Any
    ) -> None:
        for name, output in updates.items():
            if not overwritable(model, name, output):
                raise QCompileError(f"{output!r} cannot be written over {name!r}: another node may read it later")
        self.session = Session(model, **options)
        self.results = [name for name in self.session.outputs if name not in set(updates.values())]
        self._binding = self.session.binding()
        self._held = {name: self.session.held(np.array(array)) for name, array in state.items()}
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, output in updates.items():
            self._binding.bind_ortvalue_output(output, self._held[name])
        for name in self.results:
            self._binding.bind_output(name)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once on `feeds`, which are all inputs but the state; return the results."""
        given = {name: self.session.held(array) for name, array in feeds.items()}  # until the end of the run
        for name, value in given.items():
            self._binding.bind_ortvalue_input(name, value)
        self.session.run_bound(self._binding)
        made = self._binding.get_outputs()[-len(self.results) :]
        return {name: value.numpy() for name, value in zip(self.results, made)}

    def read(self) -> dict[str, Array]:
        """Return a copy of the state."""
        return {name: np.array(value.numpy()) for name, value in self._held.items()}

    def write(self, state: Mapping[str, Array]) -> None:
        """Set the state."""
        for name, array in state.items():
            self._held[name].update_inplace(np.ascontiguousarray(array))


def overwritable(model: onnx.ModelProto, name: str, output: str) -> bool:
    """Say whether every node that reads `name` runs before the one that writes `output`, or is that node."""
    made_by = {made: node for node in model.graph.node for made in node.output}
    behind: set[str] = set()
    queue = [output]
    while queue:
        node = made_by.get(queue.pop())
        if node is not None and node.output[0] not in behind:
            behind.add(node.output[0])
            queue.extend(node.input)
    return all(node.output[0] in behind for node in model.graph.node if name in node.input)
