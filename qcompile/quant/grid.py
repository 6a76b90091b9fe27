"""Which integers codes may be, and what holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Container = Literal["uint8", "int8"]


@dataclass(frozen=True)
class Grid:
    """The integers `low` to `high`, in a `container`: the type that files, kernels and arrays have for them."""

    low: int
    high: int
    container: Container

    @property
    def bits(self) -> int:
        """How many bits tell its integers apart."""
        return self.steps.bit_length()

    @property
    def steps(self) -> int:
        """The number of steps from the lowest to the highest integer: one less than there are."""
        return self.high - self.low

    @property
    def middle(self) -> int:
        """The zero point of a symmetric quantizer: 0 in int8."""
        return 0 if self.container == "int8" else (self.steps + 1) // 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """The container as numpy's type."""
        return np.dtype(self.container)

    @property
    def whole(self) -> Grid:
        """All integers that the container holds."""
        held = np.iinfo(self.container)
        return replace(self, low=int(held.min), high=int(held.max))

    @property
    def half(self) -> Grid:
        """The grid without its negative integers."""
        return replace(self, low=0)

    def is_within(self, other: Grid) -> bool:
        """Say whether all its integers are those of another grid, in the same container."""
        return self.container == other.container and other.low <= self.low < self.high <= other.high

    @property
    def is_held(self) -> bool:
        """Say whether there are integers at all, and the container holds them."""
        return self.is_within(self.whole)

    @property
    def is_narrow(self) -> bool:
        """Say whether the container holds others too: what is written into it then needs a clip."""
        return self != self.whole

    @property
    def codes(self) -> NDArray[Any]:
        """All integers of the grid, in order."""
        return np.arange(self.low, self.high + 1, dtype=self.container)

    def __str__(self) -> str:
        return f"{self.low} .. {self.high} in {self.container}"

    def clip(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return rounded values as integers of the grid."""
        codes: NDArray[Any] = np.clip(values, self.low, self.high).astype(self.container)
        return codes


def unsigned(bits: int) -> Grid:
    """Return the grid 0 .. 2**bits - 1 in uint8."""
    return Grid(0, (1 << bits) - 1, "uint8")


def signed(bits: int) -> Grid:
    """Return the grid -2**(bits - 1) .. 2**(bits - 1) - 1 in int8."""
    return Grid(-(1 << bits - 1), (1 << bits - 1) - 1, "int8")


# Of weights, as kernels read them: two products of -128 do not fit the int16 in which kernels on Arm add them.
WEIGHTS: Final = Grid(-127, 127, "int8")
