"""Trials: what stretches of the graph would err by with plain numbers from a few samples, judged on a few others."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qcompile.calibration.ranges import BY_BITS, Ranges
from qcompile.data.dataset import Dataset
from qcompile.errors import QCompileError
from qcompile.ir.layers import Kept
from qcompile.memory import release_freed_memory
from qcompile.qmodel import QModel
from qcompile.quant.plan import WIDE, Plan
from qcompile.simulation.numbers import choose_numbers
from qcompile.simulation.stretches import OutputError, open_stretches
from qcompile.targets.schema import Target

ELEMENTS = 5 << 17  # of all inputs of a trial, half of them to choose numbers, half to judge
MOST = 32  # samples
SERVED = 3e-3  # relative error (25 dB) of each output up to which the bits serve a stretch as it is


def trial(
    model: QModel,
    stretches: Sequence[Collection[str]],
    plan: Plan | None = None,
    *,
    by: str = "trial",
    ranges: Ranges = BY_BITS,
    times: int = 1,
) -> list[list[OutputError]] | None:
    """Return the errors of each stretch of `model` with fresh numbers for its plan, or for `plan`; neither is changed.

    A few samples are enough to compare two trials; one that is held against a limit takes so many `times` as many, or
    ranges that are too narrow would pass for a fault of the bits. None without samples, before placement, and where a
    trial fails, with a note of the pass that it is `by`.
    """
    plan = plan or model.plan
    if model.data is None or not stretches or not plan.nodes:
        return None
    tried = replace(copied(plan), quantizers={}, weights={}, biases={})
    config, (some, others) = model.config, _shares(model.data, model.config.seed, times)
    try:
        choose_numbers(
            model.graph,
            tried,
            ranges,
            some,
            target=model.target,
            batch=config.batch,
            threads=config.threads,
            only=frozenset().union(*stretches),
            all_values=True,
            label="try",
        )
        opened = open_stretches(model.graph, tried, stretches, threads=config.threads)
        del tried  # the codes of its weights
        release_freed_memory()
        return opened.errors(others.batches(1))
    except QCompileError as error:
        model.journal.note(by, "trial failed", reason=str(error))
        return None


def copied(plan: Plan) -> Plan:
    """Return a plan whose decisions about nodes and quantizers may be changed."""
    nodes, groups = dict(plan.nodes), dict(plan.groups)
    return replace(plan, nodes=nodes, groups=groups, reads=dict(plan.reads), specs=dict(plan.specs))


def at_8_bits(plan: Plan, target: Target) -> Plan:
    """Return the plan with 8 bits for all that is on integers: no tensor has a second quantizer then."""
    nodes = {
        name: replace(
            node,
            weight_bits=WIDE if node.weight_bits else 0,
            input_bits=WIDE if 0 < node.input_bits < WIDE else node.input_bits,
        )
        for name, node in plan.nodes.items()
    }
    specs = {key: replace(spec, grid=target.grid(8, spec.lower)) for key, spec in plan.specs.items() if not key.reader}
    return replace(plan, nodes=nodes, reads={edge: plan.key(edge.tensor) for edge in plan.reads}, specs=specs)


def _shares(data: Dataset, seed: int, times: int) -> tuple[Dataset, Dataset]:
    """Return a few samples to choose numbers from and a few to judge by; the same where there is only one."""
    elements = sum(array.size for array in next(data.batches(1)).values()) // (data.fixed_batch or 1)
    few = data.sample(int(np.clip(times * ELEMENTS // max(elements, 1), 2, times * MOST)), seed)
    step = data.fixed_batch or 1
    pieces = np.repeat(np.arange(few.count // step), step)
    if few.count < 2 * step:
        return few, few
    return few.select(np.flatnonzero(pieces % 2 == 0)), few.select(np.flatnonzero(pieces % 2 == 1))


@dataclass(frozen=True)
class Place:
    """A place where weights may be changed without changing the function.

    `stretch` names the nodes whose numbers depend on it; `change` does it and returns how much it changed, and what was
    there before.
    """

    name: str
    stretch: frozenset[str]
    change: Callable[[], tuple[int, list[Kept]]]


def change_where_better(
    model: QModel,
    by: str,
    places: Sequence[Place],
    untouched: Collection[str] | None,
    ranges: Ranges = BY_BITS,
) -> int:
    """Change all places, and put back those whose stretch errs more then, with a note; return how much changed.

    `untouched` names the places that are known to be better as they are; None: trials say which, where there are
    samples. They become part of the plan, and so do those that their bits serve as they are: at 8 bits that is usual.
    """
    left = model.plan.untouched if untouched is None else untouched
    places = [place for place in places if place.name not in left]
    places, before = _unserved(model, by, places, ranges) if untouched is None else (places, None)
    stretches = [place.stretch for place in places]
    changes = [place.change() for place in places]
    after = trial(model, stretches, by=by, ranges=ranges) if before and any(count for count, _ in changes) else None
    if before is None or after is None:
        return sum(count for count, _ in changes)
    changed = 0
    for place, (count, kept), old, new in zip(places, changes, map(total, before), map(total, after)):
        if count and new > old:
            for item in kept:
                item.restore()
            model.plan.untouched.append(place.name)
            model.journal.note(by, "undone", node=place.name, before=old, after=new, reason="its layers erred more")
        else:
            changed += count
    return changed


def _unserved(
    model: QModel, by: str, places: list[Place], ranges: Ranges
) -> tuple[list[Place], list[list[OutputError]] | None]:
    """Note the places that their bits serve as they are; return the others and their errors, or None without a trial.

    A stretch that served another kind of change before is not tried again: nothing has changed in it.
    """
    unknown = [place for place in places if place.stretch not in model.served]
    errors = trial(model, [place.stretch for place in unknown], by=by, ranges=ranges)
    model.served |= {place.stretch for place, found in zip(unknown, errors or []) if largest(found) <= SERVED}
    served = [place.name for place in places if place.stretch in model.served]
    if served:
        model.plan.untouched += served
        model.journal.note(by, "left alone", nodes=served, reason="their bits serve them as they are")
    rest = [place for place in unknown if place.stretch not in model.served]
    return rest, errors and [found for found in errors if largest(found) > SERVED]


def largest(errors: Iterable[OutputError]) -> float:
    """Return the largest of the relative errors of all outputs of a stretch."""
    return max(_shares_of(errors), default=0.0)


def total(errors: Iterable[OutputError]) -> float:
    """Return the sum of the relative errors of all outputs of a stretch."""
    return sum(_shares_of(errors))


def _shares_of(errors: Iterable[OutputError]) -> list[float]:
    return [error.share for error in errors if error.axis < 0 and not math.isnan(error.share)]
