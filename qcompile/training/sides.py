"""The float model and its quantized twin side by side, advanced unit by unit over all samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.emission.fragment import boundary, fragment
from qcompile.errors import InputError
from qcompile.ir import Constant, Graph, topological
from qcompile.program.lower import Kind, Program, Step, Value, lower
from qcompile.quant.plan import Plan, Unit
from qcompile.runtime.session import Session

Array = NDArray[Any]
PART = 16  # samples in one run
FLOAT, QUANTIZED = "f", "q"


@dataclass
class Sides:
    """Values at the border of what has been run: `values` maps (side, name) to an array of all samples.

    Codes are uint8, so the quantized side takes a quarter of the float one. What no later unit reads is dropped.
    """

    graph: Graph
    plan: Plan
    data: Dataset
    threads: int
    values: dict[tuple[str, str], Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constants = {name for name, tensor in self.graph.tensors().items() if isinstance(tensor, Constant)}
        self.nodes = topological(self.graph)
        self.steps_done: set[int] = set()
        self.nodes_done: set[str] = set()
        self.results = {tensor.name for tensor in self.graph.outputs}
        batches = list(self.data.batches(PART))
        for name in batches[0]:
            if len({batch[name].shape[1:] for batch in batches}) > 1:
                raise InputError(
                    f"training needs samples of one size, those of {name!r} differ",
                    where=self.data.source,
                    remedy="give --preprocess a size or a crop, or use --method rtn",
                )
            array = np.concatenate([batch[name] for batch in batches])
            self.values[FLOAT, name] = self.values[QUANTIZED, name] = array
        self.count = len(array)

    def program(self) -> Program:
        """Return the program as the plan stands now."""
        return lower(self.graph, self.plan)

    def steps_of(self, unit: Unit) -> list[int]:
        """Return the numbers of the unit's steps, with the quantizers in front of them that nobody has run."""
        steps = self.program().steps
        made_by = {value.name: number for number, step in enumerate(steps) for value in step.outputs}
        found = {number for number, step in enumerate(steps) if step.node is not None and step.node.name in unit.nodes}
        queue = list(found)
        while queue:
            for value in steps[queue.pop()].reads:
                number = made_by.get(value.name, -1)
                if number >= 0 and number not in found | self.steps_done and steps[number].node is None:
                    found.add(number)
                    queue.append(number)
        return sorted(found)

    def inputs_of(self, steps: Sequence[Step]) -> list[Value]:
        """Return the values that `steps` read from before."""
        return [value for value in boundary(steps)[0] if value.name and value.name not in self.constants]

    def outputs_of(self, numbers: Sequence[int]) -> list[Value]:
        """Return the values of these steps that others read or the model gives out."""
        steps = self.program().steps
        read = {value.name for k, step in enumerate(steps) if k not in set(numbers) for value in step.reads}
        return [value for k in numbers for value in steps[k].outputs if value.name in read | self.results]

    def run_float(self, unit: Unit) -> None:
        """Run the unit's nodes on the float side."""
        steps = [
            Step(Kind.FLOAT, tuple(Value(t.name) for t in n.inputs), tuple(Value(t.name) for t in n.outputs), n)
            for n in self.nodes
            if n.name in set(unit.nodes)
        ]
        self.nodes_done.update(unit.nodes)
        made = [value.name for step in steps for value in step.outputs]
        self._run(FLOAT, steps, [name for name in made if name in self._read_later_as_float() | self.results])

    def run_quantized(self, numbers: Sequence[int]) -> None:
        """Run these steps on the quantized side, as the plan stands now; forget what nobody needs any more."""
        steps = self.program().steps
        self._run(QUANTIZED, [steps[k] for k in numbers], [value.name for value in self.outputs_of(numbers)])
        self.steps_done.update(numbers)
        later = {value.name for k, step in enumerate(steps) if k not in self.steps_done for value in step.reads}
        exact = self._read_later_as_float()
        tensors = self.tensors()
        kept = {FLOAT: exact | {tensors.get(name, name) for name in later}, QUANTIZED: later}
        self.values = {key: array for key, array in self.values.items() if key[1] in kept[key[0]]}

    def error(self, numbers: Sequence[int], samples: slice) -> float:
        """Return the squared error of these steps' outputs against the float side, relative to the float values."""
        steps, tensors = self.program().steps, self.tensors()
        outputs = [v for v in self.outputs_of(numbers) if (FLOAT, tensors.get(v.name, v.name)) in self.values]
        made = self._results(QUANTIZED, [steps[k] for k in numbers], [v.name for v in outputs], samples)
        total = 0.0
        for value in outputs:
            exact, found = (
                self.values[FLOAT, tensors.get(value.name, value.name)][samples],
                made[value.name].astype(np.float32),
            )
            if value.quantizer is not None:
                found = (found - value.quantizer.zero_point) * np.float32(value.quantizer.scale)
            total += float(np.square(found - exact).sum() / max(np.square(exact).sum(), 1e-30))
        return total

    def tensors(self) -> dict[str, str]:
        """Map the names of codes to the tensors of the graph that they stand for."""
        return {codes: tensor for tensor, codes in self.program().codes.items()}

    def _read_later_as_float(self) -> set[str]:
        return {tensor.name for node in self.nodes if node.name not in self.nodes_done for tensor in node.inputs}

    def _run(self, side: str, steps: Sequence[Step], outputs: Sequence[str]) -> None:
        made = self._results(side, steps, outputs, slice(0, self.count))
        self.values.update({(side, name): array for name, array in made.items()})

    def _results(self, side: str, steps: Sequence[Step], outputs: Iterable[str], samples: slice) -> dict[str, Array]:
        names = list(dict.fromkeys(outputs))
        if not names:
            return {}
        inputs = self.inputs_of(steps)
        session = Session(fragment(self.graph, self.plan, steps, inputs, names), threads=self.threads, fuse_qdq=False)
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for start in range(samples.start, samples.stop, PART):
            part = slice(start, min(start + PART, samples.stop))
            made = session.run({value.name: self.values[side, value.name][part] for value in inputs}, names)
            for name in names:
                parts[name].append(made[name])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
