"""Training of one region: a function of the task and its samples alone, in whatever process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.qmodel import seeded
from qcompile.training.engines import Trainer, open_trainer
from qcompile.training.recipe import FROZEN, Training, draw_mask, settings_at
from qcompile.training.region import Region

Array = NDArray[Any]
Indices = NDArray[np.int64]
Rows = Callable[[tuple[str, str], Sequence[int] | Indices], Array]
STARTING_BATCHES = 4  # whose mean error is the unit of the loss
SHOWN = 0.05  # weight of the newest loss in the mean that is shown


class DivergedError(Exception):
    """The loss or a parameter is no longer a number; the text says when."""


@dataclass(frozen=True)
class Task:
    """What training of one region takes beside its samples; it can go to another process.

    `name` and `seed` decide the random choices: `steps` times a `batch` of the samples at `places`, and masks.
    """

    name: str
    region: Region
    training: Training
    places: Indices
    batch: int
    steps: int
    seed: int
    threads: int


def train(task: Task, rows: Rows, told: Callable[[str], None] = lambda text: None) -> dict[str, Array]:
    """Return the trained parameters by name.

    `rows` gives the samples at some places of what the region reads, by (side, name). `told` hears after each step
    what the loss came to. Raises DivergedError, and what the engine raises for a region that it cannot train.
    """
    trainer = open_trainer(task.region, task.training, task.threads)
    try:
        return _trained(task, trainer, rows, told)
    finally:
        trainer.close()


def _trained(task: Task, trainer: Trainer, rows: Rows, told: Callable[[str], None]) -> dict[str, Array]:
    region, random = trainer.region, seeded(task.seed, task.name)

    def feeds() -> dict[str, Array]:
        picked = np.sort(random.choice(task.places, task.batch, replace=False))
        drawn = {name: rows(key, picked) for name, key in region.feeds.items()}
        return drawn | {name: draw_mask(random, shape, region.quantized) for name, shape in region.masks.items()}

    start = float(np.mean([trainer.run(feeds(), FROZEN, 1.0) for _ in range(STARTING_BATCHES)]))
    if not math.isfinite(start):
        raise DivergedError(f"the loss is {start}")
    trainer.reset()
    unit = max(start, 1e-12)
    shown = start
    for step in range(task.steps):
        loss = trainer.run(feeds(), settings_at(step / task.steps), unit)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss} at step {step + 1} of {task.steps}")
        shown += SHOWN * (loss - shown)
        told(f"loss {start:.3g}, now {shown / unit:.2f} of it")
    state = trainer.state
    if not all(np.isfinite(state[name]).all() for name in region.parameters):
        raise DivergedError(f"a parameter is not finite after {task.steps} steps")
    return {name: state[name] for name in region.parameters}
