"""Which axis of a value counts the samples, and how samples are taken out of it and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
NO_ARRAY = "are a sequence, no array"
NO_ROWS = "have not one number of rows for every sample"
NO_ORDER = "are not ordered by sample"
MIXED = 0.01  # relative squared error beyond which values are those of another sample


def stacked(shape: tuple[int, ...], samples: int, axis: int = 0) -> tuple[int, ...]:
    """Return the shape of several samples, each of `shape`, along an axis."""
    return (*shape[:axis], samples * shape[axis], *shape[axis + 1 :]) if shape else ()


def apart(array: Array, samples: int, axis: int) -> Array:
    """Return [samples, ...]: each a sample, with as many rows of `axis` as it has."""
    split = array.reshape(*array.shape[:axis], samples, array.shape[axis] // samples, *array.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, axis, 0))


def together(samples: Array, axis: int) -> Array:
    """Return what `apart` was given."""
    shape = stacked(samples.shape[1:], len(samples), axis)
    return np.moveaxis(samples, 0, axis).reshape(shape) if axis else samples.reshape(shape)


def sample_axes(
    call: Callable[[Sequence[int]], dict[str, Any]], names: Sequence[str], batch: int = 1
) -> tuple[dict[str, int], dict[str, str]]:
    """Return the axis that counts the samples in each of `names`, and for others why there is none.

    `call` makes the values of the samples at given places, a multiple of `batch`. The axis is the one that is twice as
    long for twice the samples; its rows must come in their order, and no sample may change those of another.
    """
    first, second = list(range(batch)), list(range(batch, 2 * batch))
    one, two, turned = call(first), call(first + second), call(second + first)
    axes: dict[str, int] = {}
    lost: dict[str, str] = {}
    for name in names:
        axis = _growing(one[name], two[name])
        if axis is None:
            lost[name] = NO_ROWS
            continue
        halves = apart(two[name], 2, axis)
        if alike(one[name], halves[0]) and alike(turned[name], together(halves[::-1], axis)):
            axes[name] = axis
        else:
            lost[name] = NO_ORDER
    return axes, lost


def _growing(one: Any, two: Any) -> int | None:
    if not isinstance(one, np.ndarray) or not isinstance(two, np.ndarray) or one.ndim != two.ndim:
        return None
    other = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape)) if a != b]
    return other[0] if len(other) == 1 and two.shape[other[0]] == 2 * one.shape[other[0]] else None


def alike(found: Array, expected: Array) -> bool:
    """Say whether two arrays hold the same values, but for rounding; NaN is like NaN."""
    if found.shape != expected.shape:
        return False
    exact = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinite values in masks
        return not np.square(found - exact).sum() > MIXED * np.square(exact).sum()
