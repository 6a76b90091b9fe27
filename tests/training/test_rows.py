"""Which axis counts the samples, and samples taken apart along it and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompile.training.rows import NO_ORDER, NO_ROWS, apart, sample_axes, stacked, together

DATA = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_is_taken_apart_comes_together(axis: int) -> None:
    array = np.arange(6 * 12 * 18).reshape(6, 12, 18)
    parts = apart(array, 3, axis)
    assert (parts[1] == np.take(array, range(*((2, 4), (4, 8), (6, 12))[axis]), axis)).all()
    assert (together(parts, axis) == array).all()
    assert stacked(parts.shape[1:], 3, axis) == array.shape
    assert stacked((), 1) == ()


Made = Callable[[NDArray[np.float32]], NDArray[np.float32]]
FORMS: dict[str, tuple[Made, int | str]] = {
    "first": (lambda x: x, 0),
    "second": (lambda x: x.transpose(1, 0, 2), 1),
    "last": (lambda x: x.transpose(1, 2, 0), 2),
    "folded": (lambda x: x.reshape(-1, 4), 0),
    "folded behind tokens": (lambda x: x.transpose(1, 0, 2).reshape(-1, 4), NO_ORDER),
    "folded into the second axis": (lambda x: x.transpose(2, 0, 1).reshape(4, -1), 1),
    "sorted": (lambda x: np.sort(x, axis=0), NO_ORDER),
    "mixed": (lambda x: x - x.mean(0), NO_ORDER),
    "a sum over samples": (lambda x: x.sum(0), NO_ROWS),
    "pairs of samples": (lambda x: np.einsum("aij,bij->ab", x, x), NO_ROWS),
    "as many rows as are positive": (lambda x: x[x > 0], NO_ROWS),
    "infinite in places": (lambda x: np.where(x > 1, -np.inf, x).astype(np.float32), 0),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_the_axis_of_the_samples_is_found(form: str, batch: int) -> None:
    made, expected = FORMS[form]

    def call(places: Sequence[int]) -> dict[str, NDArray[np.float32]]:
        return {"y": made(DATA[list(places)])}

    axes, lost = sample_axes(call, ["y"], batch)
    assert axes | lost == {"y": expected}
