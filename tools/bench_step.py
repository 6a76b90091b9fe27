"""Time one training step of our step graph against the same step in torch, plain and tuned by hand.

    python tools/bench_step.py
    python tools/bench_step.py --regions a,b,c,d --repeats 50

Columns: `plain` and `blocked` are our step graph, on ordinary and on ONNX Runtime's blocked layout; `torch` is the code
that papers publish, channels-last; `tuned` is torch as an expert would write it. Means of ratios are geometric.

W4A4, batch 32, one thread on both sides. Each side draws its samples and masks, takes the step and keeps its state. All
sides take turns in one process; a figure is the median of the process's CPU time. Before that every region is checked:
on the same samples and masks, the losses of three steps must agree.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from step_regions import BATCH, SPECS, Subject, subject
from torch_regions import QUANTIZED, Plain, TorchRegion
from torch_tuned import Tuned

from qcompile.execution.spool import Spool
from qcompile.training.layout import blocked
from qcompile.training.recipe import FROZEN, draw_mask, settings_at
from qcompile.training.region import Region
from qcompile.training.step_graph import StepGraph

Array = NDArray[Any]
Take = Callable[[], float]  # one step: returns the squared error it saw
TORCH, TUNED = "torch", "tuned"
FORMS: dict[str, Callable[[Region], Region]] = {"plain": lambda region: region, "blocked": blocked}
SMALL = ("a", "b", "c", "d")
MOST, FEWEST, ELEMENTS = 256, 40, 1 << 24  # samples, and elements of an input that they may have together
MEMORY = 4 << 30  # bytes of samples: none is read from disk
LATE = settings_at(0.5)  # behind the warm-up: with the regulariser
CHECKED_STEPS, TOLERANCE = 3, 1e-3


class Ours:
    """Our side: one region as the compiler trains it."""

    def __init__(self, given: Subject, layout: Callable[[Region], Region]) -> None:
        self.sides, self.graph = given.sides, StepGraph(layout(given.region), threads=1)
        self.restart()

    def restart(self) -> None:
        """Go back to the start, random numbers included."""
        self.graph.reset()
        self.random = np.random.default_rng(0)

    def feeds(self, quantized: float = QUANTIZED) -> dict[str, Array]:
        """Pick samples and draw masks."""
        picked = np.sort(self.random.choice(self.sides.count, BATCH, replace=False))
        drawn = {name: self.sides.rows(key, picked) for name, key in self.graph.region.feeds.items()}
        return drawn | {
            name: draw_mask(self.random, shape, quantized) for name, shape in self.graph.region.masks.items()
        }

    def unit_error(self) -> float:
        """Return the squared error before training."""
        error = self.graph.run(self.feeds(), FROZEN, 1.0)
        self.restart()
        return error


def samples(name: str) -> int:
    """Return how many samples a region is trained on here: a step's time does not depend on it, memory does."""
    return max(FEWEST, min(MOST, ELEMENTS // math.prod(SPECS[name].shape)))


def check(forms: Mapping[str, Ours], torches: Mapping[str, TorchRegion], unit_error: float) -> str:
    """Take the same steps on all sides; return the largest difference of their losses, or leave if it is too large.

    Forms of our own have masks of different shapes: they are compared without drop.
    """
    plain, *others = forms.values()
    differences = []
    for _ in range(CHECKED_STEPS):
        feeds = plain.feeds()
        loss = plain.graph.run(feeds, LATE, unit_error)
        differences += [side.step(LATE, unit_error, feeds) / loss - 1 for side in torches.values()]
    plain.restart()
    for _ in range(CHECKED_STEPS):
        loss = plain.graph.run(plain.feeds(1.0), LATE, unit_error)
        differences += [other.graph.run(other.feeds(1.0), LATE, unit_error) / loss - 1 for other in others]
    worst = max(map(abs, differences))
    if worst > TOLERANCE:
        raise SystemExit(f"losses differ by {worst:.1e}: this is not the same training")
    return f"{worst:.0e}"


def medians(takes: dict[str, Take], repeats: int) -> dict[str, float]:
    """Let all sides take `repeats` steps in turn; return the median CPU milliseconds of each."""
    times: dict[str, list[float]] = {name: [] for name in takes}
    names = list(takes)
    gc.disable()  # a collection would be billed to whoever runs when it comes
    for turn in range(repeats + 1):
        for name in names:
            start = time.process_time()
            takes[name]()
            if turn:  # the first step of each allocates
                times[name].append((time.process_time() - start) * 1e3)
        names = names[1:] + names[:1]  # nobody always runs behind the same neighbour's cold caches
        gc.collect()
    gc.enable()
    return {name: float(np.median(found)) for name, found in times.items()}


def measure(name: str, repeats: int) -> tuple[dict[str, float], str]:
    """Return {side: milliseconds of a step} of one region, and the difference of losses between the sides."""
    with Spool(MEMORY) as spool:
        given = subject(name, samples(name), spool)
        forms = {what: Ours(given, layout) for what, layout in FORMS.items()}
        unit_error = forms["plain"].unit_error()
        torches: dict[str, TorchRegion] = {TORCH: Plain(given), TUNED: Tuned(given)}
        difference = check(forms, torches, unit_error)

        def ours(what: str) -> float:
            return forms[what].graph.run(forms[what].feeds(), LATE, unit_error)

        takes: dict[str, Take] = {what: partial(ours, what) for what in forms}
        takes |= {what: partial(side.step, LATE, unit_error) for what, side in torches.items()}
        return medians(takes, repeats), difference


def table(names: Sequence[str], repeats: int) -> Table:
    """Time the regions; ratios are ours over theirs."""
    ratios = [f"{form}\n/{side}" for form in FORMS for side in (TORCH, TUNED)]
    result = Table("", *FORMS, TORCH, TUNED, *ratios, "losses\ndiffer", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    result.title = f"one training step, W4A4, batch {BATCH}, one thread: CPU ms, median of {repeats}"
    result.caption = "\n".join(f"{name}: {SPECS[name].what}" for name in names)
    rows: dict[str, list[float]] = {}
    for name in names:
        found, difference = measure(name, repeats)
        rows[name] = [found[form] / found[side] for form in FORMS for side in (TORCH, TUNED)]
        cells = [f"{found[side]:.1f}" for side in (*FORMS, TORCH, TUNED)]
        result.add_row(name, *cells, *(f"{ratio:.2f}" for ratio in rows[name]), difference)
    result.add_section()
    blank = [""] * (len(FORMS) + 2)
    for what, chosen in (("mean", names), ("mean a-d", SMALL)):
        if rows.keys() >= set(chosen):
            means = [geometric_mean(column) for column in zip(*(rows[name] for name in chosen))]
            result.add_row(what, *blank, *(f"{mean:.2f}" for mean in means))
    worst = [max(column) for column in zip(*rows.values())]
    result.add_row("worst", *blank, *(f"{ratio:.2f}" for ratio in worst))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", default=",".join(SPECS), help="names, divided by commas")
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.regions.split(",")
    if unknown := set(names) - set(SPECS):
        parser.error(f"no region {', '.join(sorted(unknown))}; known: {', '.join(SPECS)}")
    Console(soft_wrap=True).print(table(names, given.repeats))


if __name__ == "__main__":
    main()
