"""The float model and its quantized twin side by side, advanced piece by piece over all samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.errors import InputError, QCompileError
from qcompile.execution.fragment import boundary, fragment
from qcompile.execution.spool import Spool
from qcompile.execution.twins import float_steps
from qcompile.ir import Constant, Graph, captured_names, topological
from qcompile.ir.graph import is_real
from qcompile.program.dag import SHAPE_SOURCES
from qcompile.program.lower import Kind, Program, Step, Value, lower
from qcompile.quant.arithmetic import dequantize
from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Edge, Plan
from qcompile.runtime.session import Session
from qcompile.training.rows import NO_ARRAY, NO_ROWS, apart, sample_axes, stacked, together

Array = NDArray[Any]
Arrays = dict[str, Array]
PART = 16  # samples in one run, at most
PART_ELEMENTS = 1 << 25  # of the largest tensor in one run: bounds its memory
FLOAT, QUANTIZED = "f", "q"
FROM = "come from those of"
MASKED = 1e18  # values beyond it, which exporters write into attention masks, are no numbers to be near to
Key = tuple[str, str]
Places = Sequence[int] | NDArray[np.int64]


@dataclass
class Sides:
    """Values at the border of what has been run, of all samples, kept in `spool`.

    `shapes` maps (side, name) to the shape of what is kept of one sample, `axes` to the axis that counts them if it is
    not the first: its size is the rows that a sample has, one or several (tokens that were folded into the batch).
    Codes take a byte, so the quantized side takes a quarter of the float one; inputs of the model are kept once for
    both.
    What nothing later reads is dropped. What no sample changes (shape arithmetic, the codes of constants) is made again
    wherever it is read. What is not ordered by sample is not kept, and the steps that read it are not run: their pieces
    are not trained; `lost` maps it to the reason. Samples that are fed alone are run alone, and what they make may have
    any shape, the same for each. `batch` is the number of samples that training must take at once, None where it may
    choose. `digest` is a hash of the samples.
    """

    graph: Graph
    plan: Plan
    data: Dataset
    threads: int
    spool: Spool

    def __post_init__(self) -> None:
        self.named = tensors = self.graph.tensors()
        self.constants = {name for name, tensor in tensors.items() if isinstance(tensor, Constant)}
        self.flowing, self.fixed = self._by_sample()
        self.floats = float_steps(self.graph)
        self.steps_done: set[int] = set()
        self.floats_done: set[int] = set()
        self.sequences = vars(self.graph).get("exotic_types", {}).keys()
        self.inputs = {tensor.name for tensor in self.graph.inputs}
        self.results = {tensor.name for tensor in self.graph.outputs}
        known = [[size for size in tensor.shape[1:] if isinstance(size, int)] for tensor in tensors.values()
                 if tensor.name not in self.constants and tensor.shape]  # fmt: skip
        largest = max((int(np.prod(sizes)) for sizes in known), default=1)
        self.part = self.data.fixed_batch or max(1, min(PART, PART_ELEMENTS // max(largest, 1)))
        self.shapes: dict[Key, tuple[int, ...]] = {}
        self.axes: dict[Key, int] = {}
        self.batch = 1 if self.data.alone else None
        self.lost: dict[Key, str] = {}
        self.lowered: tuple[dict[Edge, Quantizer], Program] | None = None
        self._take_in()

    def _by_sample(self) -> tuple[set[str], set[str]]:
        """Return the nodes that samples flow into or that have trained weights, and the tensors that none changes."""
        flowing, moving = set[str](), {tensor.name for tensor in self.graph.inputs}
        for node in topological(self.graph):
            read = {tensor.name for tensor in node.inputs} | captured_names(node)
            if node.op not in SHAPE_SOURCES and (node.name in self.plan.weights or not moving.isdisjoint(read)):
                flowing.add(node.name)
                moving.update(tensor.name for tensor in node.outputs)
        return flowing, self.named.keys() - moving

    def _take_in(self) -> None:
        found = hashlib.blake2b(digest_size=16)
        self.count = 0
        for part, batch in enumerate(self.data.batches(self.part)):
            samples = self.data.samples_in(batch)
            for name, array in batch.items():
                if not self._keep((FLOAT, name), part, array, samples):
                    raise InputError(
                        f"training needs samples of one size, those of {name!r} differ",
                        where=self.data.source,
                        remedy="cut them to one (images: --preprocess with a size or a crop), or use --method rtn",
                    )
                found.update(_hashed(array))
            self.count += samples
        self.digest = found.hexdigest()
        self.shapes |= {(QUANTIZED, name): shape for (_, name), shape in self.shapes.items()}

    def _kept(self, key: Key) -> str:
        """Return the name in the spool."""
        side, name = key
        return f"{FLOAT if name in self.inputs else side}:{name}"

    def rows(self, key: Key, places: Places) -> Array:
        """Return samples of what is kept under (side, name), as a new array; one where they are fed alone."""
        return together(self.spool.rows(self._kept(key), places), self.axes.get(key, 0))

    def sizes(self, batch: int) -> dict[Key, tuple[int, ...]]:
        """Return the shapes of `batch` samples of what is kept."""
        return {key: stacked(shape, batch, self.axes.get(key, 0)) for key, shape in self.shapes.items()}

    def program(self) -> Program:
        """Return the program as the plan stands now. Large graphs take long to lower; only quantizers change."""
        if self.lowered is None or self.lowered[0] != self.plan.quantizers:
            self.lowered = dict(self.plan.quantizers), lower(self.graph, self.plan)
        return self.lowered[1]

    def steps_of(self, nodes: Collection[str]) -> list[int]:
        """Return the numbers of these nodes' steps, with the quantizers in front of them that nobody has run.

        A quantizer that carries out a clip behind a float node belongs to the clip.
        """
        steps = self.program().steps
        clips = (number for number, step in enumerate(steps) if step.kind is Kind.ENCODE and _has_one(step, nodes))
        found = _of_nodes(steps, nodes).union(clips)
        return self._with_what_they_need(steps, found - self.steps_done, self.steps_done)

    def _with_what_they_need(self, steps: Sequence[Step], numbers: Iterable[int], done: set[int]) -> list[int]:
        made_by = {value.name: number for number, step in enumerate(steps) for value in step.outputs}
        found = set(numbers)
        queue = list(found)
        while queue:
            for value in steps[queue.pop()].reads:
                number = made_by.get(value.name, -1)
                if number < 0 or number in found | done:
                    continue
                if steps[number].node is None or self._is_same_for_all(steps[number]):
                    found.add(number)
                    queue.append(number)
        return sorted(found)

    def _is_same_for_all(self, step: Step) -> bool:
        """Say whether no sample changes what a step makes: shape arithmetic, and the codes of what comes from it."""
        if step.node is None:
            return self.tensors.get(step.inputs[0].name, step.inputs[0].name) in self.fixed
        return step.node.name not in self.flowing

    def inputs_of(self, steps: Sequence[Step]) -> list[Value]:
        """Return the values that `steps` read from before."""
        return [value for value in boundary(steps)[0] if value.name and value.name not in self.constants]

    def outputs_of(self, numbers: Sequence[int]) -> list[Value]:
        """Return the values of these steps that others read or the model gives out; a shape alone is no reader."""
        steps = self.program().steps
        others = (step for k, step in enumerate(steps) if k not in set(numbers) and not self._is_same_for_all(step))
        read = {value.name for step in others for value in step.reads}
        return [value for k in numbers for value in self._kept_of(steps[k]) if value.name in read | self.results]

    def _kept_of(self, step: Step) -> tuple[Value, ...]:
        return () if self._is_same_for_all(step) else step.outputs

    def settled(self) -> set[Edge]:
        """Return the keys of the quantizers whose codes have been made: to change them now would make those wrong."""
        steps = self.program().steps
        used = {value.key for k in self.steps_done for value in (*steps[k].reads, *steps[k].outputs)}
        return {key for key in used if key is not None}

    def float_steps(self, nodes: Collection[str]) -> list[Step]:
        """Return these nodes as steps of the float side, with the shape arithmetic that they read."""
        numbers = self._with_what_they_need(self.floats, _of_nodes(self.floats, nodes), self.floats_done)
        return [self.floats[number] for number in numbers]

    def run_float(self, nodes: Collection[str]) -> None:
        """Run these nodes on the float side."""
        numbers = self._with_what_they_need(self.floats, _of_nodes(self.floats, nodes), self.floats_done)
        self._end(self.floats, numbers, self.floats_done)
        later = self._read_later(self.floats, self.floats_done) | self.results
        steps = [self.floats[number] for number in numbers]
        made = [value.name for step in steps for value in self._kept_of(step)]
        self._run(FLOAT, steps, [name for name in made if name in later])

    def run_quantized(self, numbers: Sequence[int]) -> None:
        """Run these steps on the quantized side, as the plan stands now; forget what nobody needs any more."""
        steps = self.program().steps
        self._end(steps, numbers, self.steps_done)
        later = self._read_later(steps, self.steps_done)
        made = [value.name for k in numbers for value in self._kept_of(steps[k])]
        self._run(QUANTIZED, [steps[k] for k in numbers], [name for name in made if name in later])
        exact = self._read_later(self.floats, self.floats_done)
        kept = {FLOAT: exact | {self.tensors.get(name, name) for name in later}, QUANTIZED: later}
        self.shapes = {key: shape for key, shape in self.shapes.items() if key[1] in kept[key[0]]}
        for name in set(self.spool.names()) - {self._kept(key) for key in self.shapes}:
            self.spool.drop(name)

    def error(self, numbers: Sequence[int], samples: Places) -> float:
        """Return the squared error of these steps' outputs against the float side, relative to the float values."""
        steps, outputs = self.program().steps, self._judged(numbers)
        sums = np.zeros((2, len(outputs)))
        names = [value.name for value in outputs]
        for places, made in self.run(QUANTIZED, [steps[k] for k in numbers], names, samples):
            for place, value in enumerate(outputs):
                target, found = self.rows(self._exact(value), places), made[value.name].astype(np.float32)
                if value.quantizer is not None:
                    found = dequantize(found, value.quantizer)
                if not np.abs(target).max(initial=0) < MASKED:
                    kept = np.abs(target) < MASKED
                    target, found = target[kept], found[kept]
                sums[:, place] += np.square(found - target).sum(), np.square(target).sum()
        return float((sums[0] / np.maximum(sums[1], 1e-30)).sum())

    def obstacle(self, numbers: Sequence[int]) -> str:
        """Return why these steps cannot be compared with the float side, sample by sample; "" where they can."""
        steps = self.program().steps
        for value in self.inputs_of([steps[number] for number in numbers]):
            if (QUANTIZED, value.name) not in self.shapes:
                return f"the values of {self._exact(value)[1]!r}, which it reads, {self.why((QUANTIZED, value.name))}"
        outputs = self.outputs_of(numbers)
        made = (self._exact(value)[1] for number in numbers for value in steps[number].outputs)
        if wide := next((name for name in made if name in self.named and self.named[name].dtype == np.float64), ""):
            return f"{wide!r}, which it makes, is float64"
        if self._judged(numbers):
            return ""
        for key in map(self._exact, outputs):
            if key in self.lost and is_real(self.named[key[1]]):
                return f"the values of {key[1]!r}, which it makes, {self.why(key)}"
        return "none of its outputs is a real number" if outputs else "nothing reads what it makes"

    def why(self, key: Key) -> str:
        """Return why values are not kept: how they are, or what they are made of."""
        if key not in self.lost:
            raise QCompileError(f"training reads {key[1]!r} before it is made", remedy="please report it")
        return self.lost[key]

    def _judged(self, numbers: Sequence[int]) -> list[Value]:
        """Return the outputs of these steps that are real numbers for each sample."""
        keys = ((value, self._exact(value)) for value in self.outputs_of(numbers))
        return [value for value, key in keys if key in self.shapes and is_real(self.named[key[1]])]

    def _exact(self, value: Value) -> Key:
        """Return what a value of the quantized side is to be near to."""
        return FLOAT, self.tensors.get(value.name, value.name)

    @cached_property
    def tensors(self) -> dict[str, str]:
        """Map the names of codes to the tensors of the graph that they stand for."""
        return self.program().tensors

    def _end(self, steps: Sequence[Step], numbers: Iterable[int], done: set[int]) -> None:
        done.update(number for number in numbers if not self._is_same_for_all(steps[number]))

    def _read_later(self, steps: Sequence[Step], done: set[int]) -> set[str]:
        """Return the names of what the steps that are not done read, themselves or through shape arithmetic."""
        read: set[str] = set()
        for number in reversed(range(len(steps))):
            step = steps[number]
            makes_it = any(value.name in read for value in step.outputs)
            if makes_it if self._is_same_for_all(step) else number not in done:
                read.update(value.name for value in step.reads)
        return read

    def _run(self, side: str, steps: Sequence[Step], outputs: Iterable[str]) -> None:
        names = list(dict.fromkeys(outputs))
        reason = self._what_is_lost_before(side, steps)
        lost = dict.fromkeys(names, reason) if reason else {name: NO_ARRAY for name in names if name in self.sequences}
        names = [name for name in names if name not in lost]
        if names:
            call = self._caller(side, steps, names)
            lost = self._find_axes(side, names, call)
            for part, places in enumerate(self._parts(range(self.count))):
                for name, array in call(places).items():
                    if name not in lost and not self._keep((side, name), part, array, len(places)):
                        lost[name] = NO_ROWS
        for name, reason in lost.items():
            self.lost[side, name] = reason
            self.shapes.pop((side, name), None)
            self.spool.drop(self._kept((side, name)))

    def _what_is_lost_before(self, side: str, steps: Sequence[Step]) -> str:
        """Return what to say of all that `steps` make where something that they read is not kept, else ""."""
        missing = [value for value in self.inputs_of(steps) if (side, value.name) not in self.shapes]
        if not missing:
            return ""
        reason = self.why((side, missing[0].name))
        return reason if FROM in reason else f"{FROM} {self._exact(missing[0])[1]!r}, which {reason}"

    def _keep(self, key: Key, part: int, array: Array, samples: int) -> bool:
        """Keep one part of the values of `key`; say whether every sample has as many rows, and as in other parts."""
        if not isinstance(array, np.ndarray):
            return False
        shape, axis = array.shape, self.axes.get(key, 0)
        if self.data.alone:
            self.spool.put(self._kept(key), part, array[np.newaxis])
        elif axis >= array.ndim or not shape[axis] or shape[axis] % samples:
            return False
        else:
            kept = apart(array, samples, axis)
            shape = kept.shape[1:]
            self.spool.put(self._kept(key), part, kept)
        return self.shapes.setdefault(key, shape) == shape

    def _find_axes(self, side: str, names: Sequence[str], call: Callable[[Places], Arrays]) -> dict[str, str]:
        """Find which axis of what `call` makes counts the samples; return why there is none, by name.

        What has the symbol of the batch for its first size is in order. A model with a fixed batch may take several all
        the same; where what it makes of them is not what it makes of each, training takes its `batch` from now on.
        """
        own, symbol = self.data.fixed_batch, (self.graph.inputs[0].shape or [None])[0]
        shapes = {name: self.named[self.tensors.get(name, name)].shape for name in names}
        doubtful = [
            name for name, shape in shapes.items() if own or not shape or shape[0] is None or shape[0] != symbol
        ]
        if self.batch or self.count < 2 * (own or 1) or not doubtful:
            return {}
        try:
            axes, lost = sample_axes(call, doubtful, own or 1)
        except QCompileError:
            if own is None:
                raise
            axes, lost = {}, dict.fromkeys(doubtful, NO_ROWS)
        if lost and own:
            self.batch = own
            return {}
        self.axes |= {(side, name): axis for name, axis in axes.items() if axis}
        return lost

    def inner_shapes(self, numbers: Sequence[int], batch: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what these steps make of `batch` samples, by the names of the values."""
        program = self.program().steps
        steps = [program[number] for number in numbers]
        call = self._caller(QUANTIZED, steps, [value.name for step in steps for value in step.outputs if value.name])
        if self.batch:
            return {name: array.shape for name, array in call(range(batch)).items() if isinstance(array, np.ndarray)}
        one, two = call([0]), call([0, 0])  # no size is made that a step would not have
        return {
            name: tuple(size + (batch - 1) * (other - size) for size, other in zip(array.shape, two[name].shape))
            for name, array in one.items()
            if isinstance(array, np.ndarray)
        }

    def run(
        self, side: str, steps: Sequence[Step], outputs: Iterable[str], samples: Places
    ) -> Iterator[tuple[Places, Arrays]]:
        """Yield part after part of `samples`, with what the steps make of it."""
        names = list(dict.fromkeys(outputs))
        call = self._caller(side, steps, names)
        for places in self._parts(samples):
            yield places, call(places)

    def _caller(self, side: str, steps: Sequence[Step], names: Sequence[str]) -> Callable[[Places], Arrays]:
        """Return what runs steps on the samples at given places."""
        inputs = self.inputs_of(steps)
        session = Session(fragment(self.graph, self.plan, steps, inputs, names), threads=self.threads, fuse_qdq=False)
        return lambda places: session.run(
            {value.name: self.rows((side, value.name), places) for value in inputs}, names
        )

    def _parts(self, samples: Places) -> Iterator[Places]:
        return (samples[start : start + self.part] for start in range(0, len(samples), self.part))


def _hashed(array: Array) -> Any:
    """Return what stands for the values of an array in a hash: their bytes, or texts as Python writes them."""
    if array.dtype == object:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _has_one(step: Step, nodes: Collection[str]) -> bool:
    return any(node.name in nodes for node in step.nodes)


def _of_nodes(steps: Sequence[Step], nodes: Collection[str]) -> set[int]:
    return {number for number, step in enumerate(steps) if step.node is not None and step.node.name in nodes}
