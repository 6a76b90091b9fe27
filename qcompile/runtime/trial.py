"""Does a model take several samples in one run, each as if it were alone?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import QCompileError
from qcompile.runtime.session import Arrays, Session

FAILING = re.compile(r"while running (\w+) node")
ALIKE = 1e-4  # relative squared difference of floats that rounding may make, in half precision too
FLIPPED = 0.01  # share of integers that rounding may change: classes of pixels on a border


def refusal_to_stack(session: Session, pair: Arrays) -> str:
    """Return why `session` cannot run two samples (the rows of `pair`) at once; "" where nothing speaks against it.

    Either it fails, although it runs each of them, or an output that has a row for each sample has other values there.
    An output that draws random numbers says nothing.
    """
    try:
        singles = [session.run({name: array[row : row + 1] for name, array in pair.items()}) for row in (0, 0, 1)]
    except QCompileError:  # the data is wrong, which shows later, with its name
        return ""
    try:
        both = session.run(pair)
    except QCompileError as error:
        failing = FAILING.search(error.what)
        return f"it cannot run two at once{f': its {failing[1]} fails' if failing else ''}"
    mixed = [name for name, found in both.items() if _differs(found, *(single[name] for single in singles))]
    return f"two at once change each other's output {mixed[0]!r}" if mixed else ""


def _differs(found: NDArray[Any], first: NDArray[Any], again: NDArray[Any], second: NDArray[Any]) -> bool:
    """Say whether an output of both samples is not that of each; where one alone has no single row nothing is known."""
    if not first.shape[:1] == second.shape[:1] == (1,):  # the boxes that a detector keeps, say
        return False
    if not np.array_equal(first, again, equal_nan=first.dtype.kind == "f"):
        return False
    if not found.shape[1:] == first.shape[1:] == second.shape[1:] or found.shape[:1] != (2,):
        return not (np.array_equal(found, first) and np.array_equal(found, second))  # a table depends on no sample
    if found.dtype.kind != "f":
        return bool(np.count_nonzero(found != np.concatenate([first, second])) > FLIPPED * found.size)
    expected = np.concatenate([first, second]).astype(np.float64)
    return bool(np.square(found - expected).sum() > ALIKE * np.square(expected).sum())  # NaN differs from nothing
