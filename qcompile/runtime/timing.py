"""How fast sessions are against each other, and where the time goes.

What counts is the processor time of the calling thread, which is all that a session of one thread uses: on a busy
machine wall time measures the others. It drifts too, with clock rates and caches; the ratio of two runs that follow
each other does not. So sessions take turns, in an order that changes, and the median of their ratios is the result.
"""

from __future__ import annotations

import json
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.runtime.session import Session

Arrays = Mapping[str, NDArray[Any]]
STEPS = 20  # of the clock that a measurement takes at least: so its steps, of 16 ms on some systems, are 5 % of it


@dataclass(frozen=True)
class Timing:
    """Two sessions compared: `speedup` is the median of first / second (above 1: the second is faster).

    Half of all rounds lie in `low` .. `high`. `first` and `second` are the medians of one run in seconds of processor
    time, over `rounds` rounds.
    """

    speedup: float
    low: float
    high: float
    first: float
    second: float
    rounds: int


def compare(first: Session, second: Session, feeds: Arrays, *, rounds: int = 1000, seconds: float = 1.0) -> Timing:
    """Run two sessions of one thread each in turn on the same feeds: see `take_turns`."""
    times = take_turns([first, second], feeds, rounds=rounds, seconds=seconds)
    low, speedup, high = np.percentile(times[:, 0] / times[:, 1], (25, 50, 75))
    one, two = np.median(times, axis=0)
    return Timing(float(speedup), float(low), float(high), float(one), float(two), len(times))


def compare_apart(first: onnx.ModelProto, second: onnx.ModelProto, feeds: Arrays, *, seconds: float = 1.0) -> Timing:
    """Run two models one after the other, where memory does not hold both: the machine may have changed in between.

    `low` and `high` divide the quartiles that lie furthest apart.
    """
    one, two = (take_turns([Session(model, threads=1)], feeds, seconds=seconds)[:, 0] for model in (first, second))
    (q1, median, q3), (p1, other, p3) = np.percentile(one, (25, 50, 75)), np.percentile(two, (25, 50, 75))
    rounds = min(len(one), len(two))
    return Timing(float(median / other), float(q1 / p3), float(q3 / p1), float(median), float(other), rounds)


def take_turns(
    sessions: Sequence[Session], feeds: Arrays, *, rounds: int = 1000, seconds: float = 1.0
) -> NDArray[np.float64]:
    """Return the seconds of one run, [rounds, sessions], in processor time of this thread: for sessions of one thread.

    There are `rounds` rounds at most, and none begins when `seconds` of wall time are over, but there is always one. A
    first run of each session does not count.
    """
    for session in sessions:
        session.run(feeds)  # allocates, and brings weights into the cache
    table: list[list[float]] = []
    least, end = STEPS * clock_step(), time.perf_counter() + seconds
    while len(table) < max(rounds, 1) and (not table or time.perf_counter() < end):
        row = [0.0] * len(sessions)
        for place in range(len(sessions)):
            turn = (place + len(table)) % len(sessions)  # nobody always runs behind the same neighbour's cold caches
            row[turn] = one_run(sessions[turn], feeds, least)
        table.append(row)
    return np.array(table)


def one_run(session: Session, feeds: Arrays, least: float) -> float:
    """Return the seconds of one run: the mean over as many as take `least` seconds together."""
    start, runs, taken = time.thread_time(), 0, 0.0
    while not runs or taken < least:
        session.run(feeds)
        runs, taken = runs + 1, time.thread_time() - start
    return taken / runs


def clock_step() -> float:
    """Return the seconds by which the clock of this thread's processor time moves on."""
    start = now = time.thread_time()
    while now == start:
        now = time.thread_time()
    return now - start


def operator_seconds(model: onnx.ModelProto | str | Path, feeds: Arrays, *, runs: int = 10) -> dict[str, float]:
    """Return {op_type of the optimized graph: seconds in one run on one thread}, the slowest first.

    The sum over the nodes of that type, the median over `runs`; a first run does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(model, threads=1, profile=Path(folder) / "profile")
        for _ in range(runs + 1):
            session.run(feeds)
        events = json.loads(session.end_profiling().read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    totals: dict[str, NDArray[np.float64]] = defaultdict(lambda: np.zeros(runs + 1))
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            run = bisect_right(starts, event["ts"]) - 1
            totals[event["args"]["op_name"]][run] += event["dur"] / 1e6
    medians = {op: float(np.median(seconds[1:])) for op, seconds in totals.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))
