"""Top-1 of a model file on the labelled images of a case."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from assets import CASES

from qcompile.runtime.session import Session


@cache
def top1(case_name: str, model: Path | None = None) -> float:
    """Return the top-1 in percent of `model`, or of the case's own float model, on one thread."""
    case = CASES[case_name]
    session = Session(model or case.model, threads=1)
    feeds = case.batches(case.evaluation, batch=20)
    answers = np.concatenate([session.run(item)[session.outputs[0]].argmax(-1) for item in feeds])
    return float(np.mean(answers == case.labels(case.evaluation)) * 100)
