"""How fast sessions are against each other, and where the time goes.

Absolute times drift with what else a machine does; the ratio of two runs that follow each other does not. So sessions
take turns, in an order that changes, and the median of their ratios is what counts.
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


@dataclass(frozen=True)
class Timing:
    """Two sessions compared: `speedup` is the median of first / second (above 1: the second is faster).

    `first` and `second` are the medians of one run in seconds, over `rounds` rounds.
    """

    speedup: float
    first: float
    second: float
    rounds: int


def compare(first: Session, second: Session, feeds: Arrays, *, rounds: int = 1000, seconds: float = 1.0) -> Timing:
    """Run two sessions in turn on the same feeds, `rounds` times at most or until `seconds` of wall time are over."""
    times = take_turns([first, second], feeds, rounds=rounds, seconds=seconds)
    one, two = np.median(times, axis=0)
    return Timing(float(np.median(times[:, 0] / times[:, 1])), float(one), float(two), len(times))


def take_turns(
    sessions: Sequence[Session], feeds: Arrays, *, rounds: int = 1000, seconds: float = 1.0
) -> NDArray[np.float64]:
    """Return the seconds of each run, [rounds, sessions], at least one round. A first run of each does not count."""
    for session in sessions:
        session.run(feeds)  # allocates, and brings weights into the cache
    table: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(table) < max(rounds, 1) and (not table or time.perf_counter() < end):
        row = [0.0] * len(sessions)
        for place in range(len(sessions)):
            turn = (place + len(table)) % len(sessions)  # nobody always runs behind the same neighbour's cold caches
            start = time.perf_counter()
            sessions[turn].run(feeds)
            row[turn] = time.perf_counter() - start
        table.append(row)
    return np.array(table)


def operator_seconds(
    model: onnx.ModelProto | str | Path, feeds: Arrays, *, runs: int = 10, threads: int = 1
) -> dict[str, float]:
    """Return {op_type of the optimized graph: seconds in one run}, the slowest first.

    The sum over the nodes of that type, the median over `runs`; a first run does not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = Session(model, threads=threads, profile=Path(folder) / "profile")
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
