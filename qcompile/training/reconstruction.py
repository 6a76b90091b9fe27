"""Training of one piece after another, each kept if it comes out better on samples that it was not trained on.

References: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020; Li et al., "BRECQ",
2021; Wei et al., "QDrop", 2022.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.autodiff import NoGradientRule
from qcompile.calibration.affine import AffineKernels
from qcompile.data.dataset import Dataset
from qcompile.errors import InputError
from qcompile.execution.spool import Spool
from qcompile.memory import free_memory, release_freed_memory
from qcompile.outcomes import Outcome
from qcompile.progress import tell
from qcompile.qmodel import QModel
from qcompile.quant.bias import with_room_for_bias
from qcompile.training.correction import correct
from qcompile.training.loop import DivergedError, Indices, Task, train
from qcompile.training.pieces import Piece, without_integers
from qcompile.training.recipe import QUANTIZED, ParameterKind, Training
from qcompile.training.region import Region, RegionBuilder, UntrainableError
from qcompile.training.rounding import hardened
from qcompile.training.sides import Sides
from qcompile.training.work_dir import WorkDir

Array = NDArray[Any]
HELD_BACK = 10  # one sample in so many judges whether training made a piece better, where none were held back before
ELEMENTS = 1 << 21  # of the largest activation of one batch: bounds the memory and the time of a step
MOST_MEMORY = 3 << 30  # for values, where the configuration does not say


@dataclass(frozen=True)
class _State:
    """What a piece came to, in words, its error on the samples that judge, and the decisions about it."""

    what: str
    error: float
    decisions: tuple[dict[Any, Any], ...]


def memory_of(training: Training) -> int:
    """Return the bytes that values between pieces may take in memory."""
    if training.memory is not None:
        return training.memory
    free = free_memory()
    return MOST_MEMORY if free is None else min(MOST_MEMORY, free // 2)


def reconstruct(
    model: QModel,
    pieces: Sequence[Piece],
    training: Training,
    *,
    title: str = "reconstruct",
    work_dir: WorkDir | None = None,
) -> Iterator[Outcome]:
    """Train `pieces` in order, each on what the trained ones before it make; yield the outcome of those with weights.

    `model.plan` receives hard-rounded integers, scales and biases. Whoever wants only the losses gives a model with a
    copy of the plan: `dataclasses.replace(model, plan=copy.deepcopy(model.plan))`. Random choices depend on the seed,
    `title` and the name of the piece alone. With `work_dir` the state is written after every piece; pieces that its
    state knows are run, not trained again.
    """
    if model.data is None:
        raise InputError("no calibration data", remedy="give samples with --data, or ask for --random-data")
    plan = model.plan
    if work_dir is not None and work_dir.state:
        trained = work_dir.plan(model)
        plan.weights, plan.biases, plan.quantizers = trained.weights, trained.biases, trained.quantizers
    data, trained_on, judged_by = _shares(model.data, model.held_back)
    with Spool(memory_of(training), work_dir.values() if work_dir else None) as spool:
        sides = Sides(model.graph, plan, data, model.config.threads, spool)
        run = _Run(model, training, sides, title, trained_on, judged_by)
        yield from run.outcomes(list(without_integers(model.graph, pieces)), work_dir)


def _shares(data: Dataset, held_back: Dataset | None) -> tuple[Dataset, Indices, Indices]:
    """Return all samples, the places of those to train on, and of those that judge.

    What was held back judges; without such samples, one in so many of the data does.
    """
    if held_back is None or held_back.origin != data.origin:
        judges = np.arange(data.count) % HELD_BACK == HELD_BACK - 1
        return data, np.flatnonzero(~judges), np.flatnonzero(judges if judges.any() else ~judges)
    both = data.joined(held_back)
    trained_on, judged_by = (np.flatnonzero(np.isin(both.numbers, part.numbers)) for part in (data, held_back))
    return both, trained_on, judged_by


@dataclass
class _Run:
    """One run over the pieces: `total` training steps are to be done, `done` are."""

    model: QModel
    training: Training
    sides: Sides
    title: str
    trained_on: Indices
    judged_by: Indices
    total: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        self.kernels = AffineKernels(self.model.config.threads)

    def outcomes(self, pieces: Sequence[Piece], work_dir: WorkDir | None) -> Iterator[Outcome]:
        """Train and run piece after piece, and keep the state."""
        model, sides = self.model, self.sides
        weights, each = model.plan.weights, self.training.steps
        steps = {piece.name: each * piece.units for piece in pieces if any(node in weights for node in piece.nodes)}
        outcomes: list[Outcome] = []
        if work_dir is not None:
            work_dir.match(list(steps), sides.count, sides.digest)
            outcomes = [Outcome(**entry) for entry in work_dir.outcomes]
            work_dir.save(model.plan, work_dir.outcomes)
        known = {outcome.piece for outcome in outcomes}
        yield from outcomes
        self.total, self.done = sum(steps.values()), sum(steps[name] for name in known)
        for piece in pieces if len(known) < len(steps) else []:
            tell(self.title, self.done, self.total, piece.name)
            numbers = sides.steps_of(piece.nodes)
            sides.run_float(piece.nodes)
            if piece.name in steps and piece.name not in known:
                finished = self.done + steps[piece.name]
                started = time.process_time()
                outcome = self.attempt(piece, numbers, steps[piece.name])
                outcomes.append(replace(outcome, cpu_seconds=time.process_time() - started))
                self.done = finished
                if work_dir is not None:
                    work_dir.save(model.plan, [asdict(outcome) for outcome in outcomes])
                yield outcomes[-1]
            sides.run_quantized(numbers)
            release_freed_memory()
        tell(self.title, self.total, self.total)

    def attempt(self, piece: Piece, numbers: Sequence[int], total: int) -> Outcome:
        """Correct one piece, then train it; keep the best of these states."""
        if obstacle := self.sides.obstacle(numbers):
            return Outcome(piece.name, "not trained", reason=obstacle)
        before = self.sides.error(numbers, self.judged_by)
        best = _State("left as it was", before, self.decisions())
        correct(self.sides, self.kernels, piece.nodes, numbers, self.trained_on)
        best = self.better(best, "corrected alone", numbers)
        self.go_back(best)
        reason = ""
        try:
            self.train(piece.name, numbers, total)
            best = self.better(best, "trained", numbers)
        except (NoGradientRule, UntrainableError, DivergedError) as error:
            reason = str(error)
        self.go_back(best)
        if best.what == "trained":
            as_many = np.linspace(0, len(self.trained_on) - 1, len(self.judged_by)).astype(int)
            fitted = self.sides.error(numbers, self.trained_on[as_many])
            return Outcome(piece.name, best.what, True, before, best.error, fitted)
        what = "not trained" if reason else f"not better after training: {best.what}"
        return Outcome(piece.name, what, False, before, best.error, reason=reason)

    def better(self, best: _State, what: str, numbers: Sequence[int]) -> _State:
        """Return the plan as it stands if its error on the samples that judge is lower than that of `best`, or that."""
        error = self.sides.error(numbers, self.judged_by)
        return _State(what, error, self.decisions()) if error < best.error else best

    def decisions(self) -> tuple[dict[Any, Any], ...]:
        """Return what training decides, as it stands in the plan."""
        plan = self.model.plan
        return dict(plan.weights), dict(plan.biases), dict(plan.quantizers)

    def go_back(self, state: _State) -> None:
        """Put an earlier state into the plan."""
        plan = self.model.plan
        plan.weights, plan.biases, plan.quantizers = (dict(part) for part in state.decisions)

    def train(self, name: str, numbers: Sequence[int], total: int) -> None:
        """Train the steps `numbers` of the program, `total` times, and write the result into the plan."""
        config, sides = self.model.config, self.sides
        batch = sides.batch or min(self.training.batch, len(self.trained_on), self.most_at_once(numbers))
        region = self.region(numbers, batch)

        def told(text: str) -> None:
            self.done += 1
            tell(self.title, self.done, self.total, f"{name}: {text}")

        purpose = f"{self.title}/{name}"
        task = Task(purpose, region, self.training, self.trained_on, batch, total, config.seed, config.threads)
        store(self.model, region, train(task, sides.rows, told))

    def most_at_once(self, numbers: Sequence[int]) -> int:
        """Return the samples whose largest activation in one step is within bounds."""
        sizes = [*self.sides.sizes(1).values(), *self.sides.inner_shapes(numbers, 1).values()]
        return max(2, ELEMENTS // max([*map(math.prod, sizes), 1]))

    def region(self, numbers: Sequence[int], batch: int) -> Region:
        """Return the steps `numbers` as a region. A quantizer that other steps have used already keeps its scale."""
        sides, graph, plan = self.sides, self.model.graph, self.model.plan
        settled = {key: replace(plan.specs[key], fixed=plan.quantizers[key]) for key in sides.settled()}
        program = sides.program().steps
        steps = [program[number] for number in numbers]
        shapes = sides.sizes(batch)
        fixed = replace(plan, specs=plan.specs | settled)
        shares = QUANTIZED[self.training.method]
        inner = sides.inner_shapes(numbers, batch)
        builder = RegionBuilder(graph, fixed, shapes, inner, sides.tensors, batch, len(self.trained_on), shares)
        return builder.build(steps, sides.inputs_of(steps), sides.outputs_of(numbers))


def store(model: QModel, region: Region, state: Mapping[str, Array]) -> None:
    """Write hard-rounded integers, scales and biases into the plan."""
    plan, nodes = model.plan, {node.name: node for node in model.graph.nodes}
    for name, item in region.parameters.items():  # integers first: they are counted on the scales of before
        if item.kind is ParameterKind.ROUNDING:
            exact = np.asarray(nodes[item.owner].inputs[1].values, np.float32)
            plan.weights[item.owner] = hardened(exact, plan.weights[item.owner], state[name])
    for name, item in region.parameters.items():
        if item.kind is ParameterKind.WEIGHT_SCALE:
            weight, factor = plan.weights[item.owner], np.exp(state[name].reshape(-1))
            plan.weights[item.owner] = replace(weight, scale=(weight.scale * factor).astype(np.float32))
        elif item.key is not None:
            old, factor = plan.quantizers[item.key], np.exp(state[name].reshape(()))
            plan.quantizers[item.key] = replace(old, scale=float(np.float32(old.scale * factor)))
        elif item.kind is ParameterKind.BIAS:
            plan.biases[item.owner] = state[name]
    for owner in {item.owner for item in region.parameters.values() if item.kind is ParameterKind.BIAS}:
        data = plan.scale_in_front(owner, nodes[owner].inputs[0].name)
        plan.weights[owner] = with_room_for_bias(plan.weights[owner], plan.biases[owner], data)
