"""Which boundaries to fuse: automatic choices by capacity or by measured loss, and schemes given by hand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qcompile.capacity.boundaries import Pair, chains
from qcompile.errors import InputError, nearest

TINY = 1e-30  # below this a value is taken for zero


@dataclass(frozen=True)
class Criterion:
    """How a boundary is judged by the values (capacities or losses) of the unit before it and of the one behind it.

    `score`: the highest are fused first; of equal ones first those where the capacity falls, or the loss rises
    (`bad_direction` is the sign of that change).
    """

    score: Callable[[float, float], float]
    bad_direction: int


def _difference(before: float, behind: float) -> float:
    return abs(behind - before)


def _growth(before: float, behind: float) -> float:
    return max(behind, TINY) / max(before, TINY)


CRITERIA = {
    "data-free": Criterion(_difference, -1),  # of module capacities
    "data-dependent": Criterion(_difference, 1),  # of relative losses
    "loss": Criterion(_growth, 1),
}


def top_boundaries(
    pairs: Sequence[Pair],
    values: Mapping[str, float],
    criterion: Criterion,
    count: int | None,
    fits: Callable[[Sequence[str]], bool],
) -> list[Pair]:
    """Return the boundaries to fuse, best first.

    Parameters
    ----------
    pairs
        The adjacent units to choose from.
    values
        Capacity or loss of each of their units.
    count
        How many; None: as many as fit.
    fits
        Says whether a region may have these units; boundaries that would make another one are passed over.
    """

    def rank(pair: Pair) -> tuple[float, bool]:
        before, behind = values[pair[0]], values[pair[1]]
        return -criterion.score(before, behind), (behind - before) * criterion.bad_direction <= 0

    chosen: list[Pair] = []
    wanted = len(pairs) if count is None else count
    for pair in sorted(pairs, key=rank):
        if len(chosen) < wanted and fits(_region_of(pair, chosen)):
            chosen.append(pair)
    return chosen


def _region_of(pair: Pair, joined: Collection[Pair]) -> tuple[str, ...]:
    """Return the region that `pair` would be in."""
    names = list(dict.fromkeys(name for item in [*joined, pair] for name in item))
    return next(region for region in chains(names, [*joined, pair]) if pair[0] in region)


def scheme_boundaries(
    scheme: Sequence[Sequence[str]], units: Sequence[str], pairs: Sequence[Pair], largest: int
) -> list[Pair]:
    """Return the boundaries that a scheme given by hand fuses.

    Each of its lists names the units of one region in order, by name or by number (from 0, in the order of the report);
    units in no list stay alone. Raises InputError for what is no unit, is named twice, or cannot be trained together.
    """
    behind = dict(pairs)
    seen: set[str] = set()
    chosen: list[Pair] = []
    for group in scheme:
        region = [_unit(text, units) for text in group]
        if again := next((name for number, name in enumerate(region) if name in {*seen, *region[:number]}), None):
            raise InputError(f"--fuse names the unit {again!r} twice", remedy="put it into one region")
        if len(region) > largest:
            what = f"--fuse {'+'.join(group)} joins {len(region)} units"
            raise InputError(what, remedy=f"allow it with --max-fused {len(region)}")
        for first, second in pairwise(region):
            if behind.get(first) != second:
                what = f"--fuse {'+'.join(group)}: {second!r} does not follow {first!r}"
                raise InputError(what, remedy=_followers(first, behind))
            chosen.append((first, second))
        seen.update(region)
    return chosen


def _unit(text: str, units: Sequence[str]) -> str:
    if text in units:
        return text
    if not text.isdecimal():
        raise InputError(f"--fuse {text}: there is no such unit", remedy=nearest(text, units))
    if int(text) >= len(units):
        raise InputError(f"--fuse {text}: there is no such unit", remedy=f"they are numbered 0 to {len(units) - 1}")
    return units[int(text)]


def _followers(name: str, behind: Mapping[str, str]) -> str:
    if name in behind:
        return f"what follows is {behind[name]!r}"
    return f"nothing can be fused behind {name!r}: the model or several units read its output"
