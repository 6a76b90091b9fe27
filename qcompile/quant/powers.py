"""Powers of two: scales with which hardware shifts where it would multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def power_above(values: Any) -> NDArray[np.float64]:
    """Return the least power of two that is not below each value (above 0)."""
    mantissa, exponent = np.frexp(
        np.asarray(values, np.float64)
    )  # value = mantissa * 2**exponent, mantissa in 1/2 .. 1
    return np.asarray(np.ldexp(1.0, exponent - (mantissa == 0.5)))


def nearest_power(values: Any) -> NDArray[np.float64]:
    """Return the power of two that is nearest to each value (above 0) by difference; in the middle the greater one."""
    above = power_above(values)
    return np.where(np.asarray(values, np.float64) < 0.75 * above, above / 2, above)


def is_power(values: Any) -> bool:
    """Say whether every value is a power of two."""
    return bool(np.all(np.frexp(np.asarray(values, np.float64))[0] == 0.5))
