"""Which pieces of a model to keep float, from measured times: the cheapest way through a row of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Way = tuple[float, tuple[bool, ...]]  # seconds, and for each piece whether it is float


@dataclass(frozen=True)
class Costs:
    """Times of whole files of a model of n pieces in a row, in any unit; each list has n + 1 of them.

    `first[k]`: the first k pieces float, the others on integers. `last[k]`: the first k on integers, the others float.
    """

    first: Sequence[float]
    last: Sequence[float]

    @property
    def borders(self) -> NDArray[np.float64]:
        """What a change between float and integers in front of piece k costs, [n + 1].

        Two files that change there, one each way, take together what all float and all integer do, and two borders.
        """
        both = np.add(self.first, self.last) - (self.first[0] + self.first[-1])
        borders: NDArray[np.float64] = np.maximum(both / 2, 0)
        borders[[0, -1]] = 0
        return borders

    @property
    def losses(self) -> NDArray[np.float64]:
        """How much longer each piece takes in float than on integers, borders not counted, [n]."""
        inside = (np.asarray(self.first, float) - np.asarray(self.last, float)) / 2
        losses: NDArray[np.float64] = np.diff(inside)
        return losses


def fastest(costs: Costs, least: float = 0.0) -> tuple[bool, ...]:
    """Return which pieces to keep float for the least time in all, at least one of them on integers.

    A stretch of float pieces has to gain `least` for each of its borders: times are measured, and integers are smaller.
    """
    borders, losses = costs.borders + least, costs.losses
    ways: dict[tuple[bool, bool], Way] = {(False, False): (0.0, ())}  # by: float now, some piece was on integers
    for place, loss in enumerate(losses):
        found: dict[tuple[bool, bool], Way] = {}
        for (before, some), (seconds, chosen) in ways.items():
            for keep in (False, True):
                border = borders[place] if keep != before else 0.0
                way = (seconds + border + loss * keep, (*chosen, keep))
                state = (keep, some or not keep)
                found[state] = min(found.get(state, way), way)
        ways = found
    return min(way for (_, some), way in ways.items() if some)[1]
