"""Does a model take several samples in one run, each as if it were alone?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import QCompileError
from qcompile.runtime.session import Arrays, Session

FAILING = re.compile(r"while running (\w+) node")
ALIKE = 1e-6  # relative squared difference up to which two runs give the same; rounding stays far below


def refusal_to_stack(session: Session, pair: Arrays) -> str:
    """Return why `session` cannot run two samples (the rows of `pair`) at once; "" where nothing speaks against it.

    Either it fails, although it runs each of them, or an output that has a row for each sample has other values there.
    """
    try:
        singles = [session.run({name: array[row : row + 1] for name, array in pair.items()}) for row in range(2)]
    except QCompileError:  # the data is wrong, which shows later, with its name
        return ""
    try:
        both = session.run(pair)
    except QCompileError as error:
        failing = FAILING.search(error.what)
        return f"it cannot run two at once{f': its {failing[1]} fails' if failing else ''}"
    mixed = [name for name, found in both.items() if _differs(found, [single[name] for single in singles])]
    return f"two at once change each other's output {mixed[0]!r}" if mixed else ""


def _differs(found: NDArray[Any], singles: list[NDArray[Any]]) -> bool:
    """Say whether an output of both samples is not that of each; where one alone has no single row nothing is known."""
    if [single.shape[:1] for single in singles] != [(1,), (1,)]:  # the boxes that a detector keeps, say
        return False
    if any(found.shape != (2, *single.shape[1:]) for single in singles):
        return not all(np.array_equal(found, single) for single in singles)  # a table that depends on no sample
    expected = np.concatenate(singles).astype(np.float64)
    return bool(np.square(found - expected).sum() > ALIKE * np.square(expected).sum())  # NaN differs from nothing
