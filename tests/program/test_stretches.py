"""The cheapest way through a row of pieces: against all ways, from times that add up and from times that do not."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from qcompile.program.stretches import Costs, fastest


def seconds(
    float_pieces: np.ndarray, integer_pieces: np.ndarray, borders: np.ndarray, choice: tuple[bool, ...]
) -> float:
    """Return the time of a file whose pieces and borders cost these."""
    pieces = sum(f if keep else q for f, q, keep in zip(float_pieces, integer_pieces, choice))
    return pieces + sum(borders[k] for k in range(1, len(choice)) if choice[k] != choice[k - 1])


def costs_of(float_pieces: np.ndarray, integer_pieces: np.ndarray, borders: np.ndarray) -> Costs:
    count = len(float_pieces)
    first = [tuple(i < k for i in range(count)) for k in range(count + 1)]
    last = [tuple(i >= k for i in range(count)) for k in range(count + 1)]
    pieces = (float_pieces, integer_pieces, borders)
    return Costs([seconds(*pieces, choice) for choice in first], [seconds(*pieces, choice) for choice in last])


@pytest.mark.parametrize("seed", range(8))
def test_the_cheapest_of_all_ways_is_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = 7
    pieces = (random.uniform(0, 1, count), random.uniform(0, 1, count), random.uniform(0, 0.3, count + 1))
    costs = costs_of(*pieces)
    np.testing.assert_allclose(costs.losses, pieces[0] - pieces[1], atol=1e-12)
    np.testing.assert_allclose(costs.borders[1:-1], pieces[2][1:-1], atol=1e-12)
    ways = [choice for choice in product((False, True), repeat=count) if not all(choice)]
    assert seconds(*pieces, fastest(costs)) == pytest.approx(min(seconds(*pieces, way) for way in ways))


def test_one_piece_stays_on_integers_where_all_are_faster_in_float() -> None:
    nothing = np.zeros(4)
    costs = costs_of(np.array([1.0, 1, 1]), np.array([3.0, 2, 4]), nothing)
    assert fastest(costs) == (True, False, True)


def test_a_stretch_has_to_gain_its_borders() -> None:
    """The middle is faster by 0.5 in float; there and back costs 0.4."""
    pieces = (np.array([5.0, 1, 5]), np.array([1.0, 1.5, 1]), np.array([0, 0.2, 0.2, 0]))
    assert fastest(costs_of(*pieces)) == (False, True, False)
    assert fastest(costs_of(*pieces), least=0.1) == (False, False, False)
