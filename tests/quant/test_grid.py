"""The integers that codes may be."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.quant.grid import WEIGHTS, Grid, unsigned

SYMMETRIC = Grid(-7, 7, "int8")


@pytest.mark.parametrize(
    ("grid", "bits", "steps", "narrow"),
    [
        (unsigned(8), 8, 255, False),
        (unsigned(4), 4, 15, True),
        (unsigned(2), 2, 3, True),
        (WEIGHTS, 8, 254, True),
        (SYMMETRIC, 4, 14, True),
        (Grid(-128, 127, "int8"), 8, 255, False),
    ],
    ids=str,
)
def test_what_a_grid_holds(grid: Grid, bits: int, steps: int, narrow: bool) -> None:
    assert (grid.bits, grid.steps, grid.is_narrow, grid.is_held) == (bits, steps, narrow, True)
    assert grid.codes.tolist() == list(range(grid.low, grid.high + 1)) and grid.codes.dtype == grid.dtype


@pytest.mark.parametrize("grid", [Grid(0, 256, "uint8"), Grid(-1, 14, "uint8"), Grid(3, 3, "int8")], ids=str)
def test_codes_that_the_container_has_not(grid: Grid) -> None:
    assert not grid.is_held


def test_clip_saturates_to_the_grid() -> None:
    values = np.array([-300.0, -1, 0, 7, 15, 16, 1e20])
    assert unsigned(4).clip(values).tolist() == [0, 0, 0, 7, 15, 15, 15]
    assert SYMMETRIC.clip(values).tolist() == [-7, -1, 0, 7, 7, 7, 7]
    assert unsigned(4).clip(values).dtype == np.uint8 and SYMMETRIC.clip(values).dtype == np.int8
