"""Does the float graph that is compiled compute what its source does? Compared on one feed; if not, found by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from qcompile.ir import Graph, activation_inputs, to_model, topological
from qcompile.ir.floats import rounds_inside
from qcompile.runtime.session import Arrays, Session

ROUNDING = 1e-3  # relative error beyond which float32 that is rounded in another order is not the reason
HALF_ROUNDING = 0.1  # the same where the source rounds inner values more than that
NUDGES, NUDGE = 2, 1e-5  # how often, and how far relatively, the feed is moved to see what rounding alone may do
MARGIN = 10.0  # a difference this many times larger than that is no rounding
JUMPS = {  # of inputs that are equal but for rounding these may make something else
    "ArgMax", "ArgMin", "TopK", "Hardmax", "NonMaxSuppression", "NonZero", "Unique", "Round", "Floor", "Ceil", "Sign",
    "Mod", "Cast", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
}  # fmt: skip

Array = NDArray[Any]


def first_difference(
    source: ModelProto, graph: Graph, feeds: Arrays, expected: Arrays, threads: int
) -> tuple[str, float] | None:
    """Return the first tensor of `graph` that differs from `source` on `feeds`, and its relative error; None if equal.

    `expected` are the source's outputs. Where they differ by more than rounding, the source itself is run again,
    without optimizations and on feeds that are a little different: where random numbers or chaos let that differ as
    much, or ties and thresholds decide otherwise on inputs that are equal but for rounding, that means nothing.
    """
    made = Session(to_model(graph), level="off", threads=threads).run(feeds)
    tolerance = HALF_ROUNDING if rounds_inside(source) else ROUNDING
    errors = {name: relative_error(values, made[name]) for name, values in expected.items() if name in made}
    if all(error <= tolerance for error in errors.values()):
        return None
    own = _own_errors(source, feeds, expected, threads)
    wrong = {name: error for name, error in errors.items() if error > max(tolerance, MARGIN * own[name])}
    return _origin(source, graph, feeds, wrong, tolerance, threads) if wrong else None


def relative_error(expected: Array, made: Array) -> float:
    """Return the norm of the difference over that of `expected`; the share of unequal ones for other than floats.

    Infinite where shapes, or the places of NaN and infinities, are not the same.
    """
    if expected.shape != made.shape:
        return np.inf
    if expected.dtype.kind != "f" or made.dtype.kind != "f":
        return float(np.mean(expected != made)) if expected.size else 0.0
    a, b = expected.astype(np.float64), made.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(np.where(finite, 0, a), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return np.inf
    scale, error = np.linalg.norm(a[finite]), np.linalg.norm(a[finite] - b[finite])
    return float(error / scale) if scale else float(error > 0)


def _own_errors(source: ModelProto, feeds: Arrays, expected: Arrays, threads: int) -> dict[str, float]:
    plain, random = Session(source, level="off", threads=threads), np.random.default_rng(0)
    runs = [plain.run(feeds)]
    for _ in range(NUDGES):
        runs.append(plain.run({name: _nudged(array, random) for name, array in feeds.items()}))
    return {name: max(relative_error(values, run[name]) for run in runs) for name, values in expected.items()}


def _nudged(array: Array, random: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    far = max(NUDGE, float(np.finfo(array.dtype).eps))
    return np.asarray(array * (1 + far * random.uniform(-1, 1, array.shape)), array.dtype)


def _origin(
    source: ModelProto, graph: Graph, feeds: Arrays, wrong: Mapping[str, float], tolerance: float, threads: int
) -> tuple[str, float] | None:
    """Return the last tensor in front of a wrong output that differs though all before it agree.

    Passes that rescale or rotate let inner tensors differ, but not what they end in: the last is behind those.
    """
    errors = dict(wrong) | _inner_errors(source, graph, feeds, threads)
    behind: set[str] = set()  # what differs, or depends on that and is not known to be right
    excused: set[str] = set()  # of these, what a tie or a threshold may explain
    origin = None
    for node in topological(graph):
        inputs = [tensor.name for tensor in activation_inputs(node)]
        depends = not behind.isdisjoint(inputs)
        jumps = node.op in JUMPS and any(errors.get(name, np.inf) for name in inputs if name not in feeds)
        for name in (tensor.name for tensor in node.outputs):
            differs = errors.get(name, 0.0) > tolerance
            if differs and not depends and not jumps:
                origin = name
            if differs or (depends and name not in errors):
                behind.add(name)
                if jumps or not excused.isdisjoint(inputs):
                    excused.add(name)
    return None if wrong.keys() <= excused or origin is None else (origin, errors[origin])


def _inner_errors(source: ModelProto, graph: Graph, feeds: Arrays, threads: int) -> dict[str, float]:
    made = {tensor.name for node in graph.nodes for tensor in node.outputs}
    names = made & {name for node in source.graph.node for name in node.output if name}
    runs = []
    for model in (source, to_model(graph)):
        with _watched(model, names):
            runs.append(Session(model, level="off", threads=threads).run(feeds))
    return {name: relative_error(runs[0][name], runs[1][name]) for name in names if all(name in run for run in runs)}


@contextmanager
def _watched(model: ModelProto, names: set[str]) -> Iterator[None]:
    """Let `model` have further outputs inside the block."""
    count = len(model.graph.output)
    given = {info.name for info in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - given))
    try:
        yield
    finally:
        del model.graph.output[count:]
