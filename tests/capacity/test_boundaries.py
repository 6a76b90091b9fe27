from __future__ import annotations

import pytest

from qcompile.capacity.boundaries import adjacent, chains
from qcompile.quant.plan import Unit


def units(text: str) -> list[Unit]:
    """Units of one output each, from "b:a,x" for a unit b that reads a and x."""
    made = []
    for item in text.split():
        name, _, reads = item.partition(":")
        made.append(Unit(name, (name,), tuple(reads.split(",")), (name,)))
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:x b:a c:b", ["ab", "bc"]),
        ("a:x b:a c:b,x", ["ab", "bc"]),  # the input again: it was there before
        ("a:x b:a c:a d:b,c", []),  # parallel branches, and a join that comes from both
        ("a:x b:a c:b d:c,a", ["bc", "cd"]),  # a skip around b and c
        ("a:x b:x c:a d:b e:c,d", ["ac", "bd"]),  # two inputs
        ("a:x b:a c:a d:b e:c", ["bd", "ce"]),  # two heads, in turns
        ("a:x b:a c:b,b", ["ab", "bc"]),
        ("a:x", []),
    ],
)
def test_adjacent_units(text: str, expected: list[str]) -> None:
    assert adjacent(units(text), {"z"}) == [tuple(pair) for pair in expected]


def test_what_the_model_gives_out_is_not_passed_on_alone() -> None:
    assert adjacent(units("a:x b:a c:b"), {"a", "c"}) == [("b", "c")]


def test_regions_stand_where_their_last_unit_stood() -> None:
    assert chains("abcde", []) == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert chains("abcde", [("b", "d"), ("c", "e")]) == [("a",), ("b", "d"), ("c", "e")]
    assert chains("abcd", [("c", "d"), ("a", "b"), ("b", "c")]) == [("a", "b", "c", "d")]
    assert chains("abcd", [("b", "d")]) == [("a",), ("c",), ("b", "d")]  # d may read c
