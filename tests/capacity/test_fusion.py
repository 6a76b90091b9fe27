from __future__ import annotations

from itertools import pairwise

import pytest

from qcompile.capacity.fusion import CRITERIA, scheme_boundaries, top_boundaries
from qcompile.errors import InputError

UNITS = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
PAIRS = [("stem", "layer1"), ("layer1", "layer2"), ("layer2", "layer3"), ("layer3", "layer4")]  # not layer4, head


def chosen(values: str, count: int | None, by: str = "data-free", largest: int = 9) -> list[str]:
    """Choose among the boundaries of a chain of units with one-letter names and these values."""
    numbers = [float(value) for value in values.split()]
    names = "abcdefghijkl"[: len(numbers)]
    pairs = list(pairwise(names))
    found = top_boundaries(
        pairs, dict(zip(names, numbers, strict=True)), CRITERIA[by], count, lambda region: len(region) <= largest
    )
    return ["".join(pair) for pair in found]


def test_the_largest_changes_are_fused() -> None:
    assert chosen("1 2.1 5 5 4", 2) == ["bc", "ab"]
    assert chosen("1 2 5 5 4.5", 9) == ["bc", "ab", "de", "cd"]
    assert chosen("1 2 5", 0) == []


def test_of_equal_changes_the_bad_direction_goes_first() -> None:
    assert chosen("1 2 1", 1) == ["bc"]  # the capacity falls
    assert chosen("1 2 1", 1, "data-dependent") == ["ab"]  # the loss rises
    assert chosen("1 2 3", 1) == ["ab"]  # else the first


def test_loss_looks_for_the_steepest_rise() -> None:
    assert chosen("0.1 0.2 0.9 0.1 0.3", 2, "loss") == ["bc", "de"]
    assert chosen("0.1 0.2 0.9 0.1 0.3", 2, "data-dependent") == ["cd", "bc"]
    assert chosen("0 0.1 0.2", 1, "loss") == ["ab"]  # from nothing


def test_regions_grow_to_the_limit_only() -> None:
    values = "1 10 100 1000 10000"
    assert chosen(values, 9, largest=5) == ["de", "cd", "bc", "ab"]
    assert chosen(values, 9, largest=3) == ["de", "cd", "ab"]
    assert chosen(values, 2, largest=2) == ["de", "bc"]
    assert chosen(values, 2, largest=1) == []


def test_without_a_count_all_are_fused_that_fit() -> None:
    assert chosen("1 10 100 1000 10000", None) == ["de", "cd", "bc", "ab"]
    assert chosen("1 10 100 1000 10000", None, largest=2) == ["de", "bc"]
    assert chosen("9 1 9 1 1 1", None, "loss", largest=2) == ["bc", "de"]
    assert chosen("1", None) == []


def test_a_scheme_takes_names_and_numbers() -> None:
    assert scheme_boundaries([["layer1", "layer2", "layer3"]], UNITS, PAIRS, 3) == PAIRS[1:3]
    assert scheme_boundaries([["0", "1"], ["layer3", "4"], ["5"]], UNITS, PAIRS, 3) == [PAIRS[0], PAIRS[3]]
    assert scheme_boundaries([["2", "7"]], ("7", "8", "2"), [("2", "7")], 3) == [("2", "7")]  # names come first


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ([["layer1", "leyer2"]], "--fuse leyer2: there is no such unit; did you mean 'layer2'?"),
        ([["4", "6"]], "--fuse 6: there is no such unit; they are numbered 0 to 5"),
        ([["layer1", "layer2"], ["layer2", "layer3"]], "--fuse names the unit 'layer2' twice; put it into one region"),
        ([["layer1", "1"]], "--fuse names the unit 'layer1' twice; put it into one region"),
        ([["layer1", "layer3"]], "--fuse layer1+layer3: 'layer3' does not follow 'layer1'; what follows is 'layer2'"),
        ([["4", "5"]], "nothing can be fused behind 'layer4': the model or several units read its output"),
        ([["0", "1", "2", "3"]], "--fuse 0+1+2+3 joins 4 units; allow it with --max-fused 4"),
    ],
)
def test_a_wrong_scheme_is_one_clear_line(scheme: list[list[str]], message: str) -> None:
    with pytest.raises(InputError) as error:
        scheme_boundaries(scheme, UNITS, PAIRS, 3)
    assert str(error.value).endswith(message)
