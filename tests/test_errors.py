"""Suggestions in messages."""

from __future__ import annotations

import re

import pytest

from qcompile.errors import near, nearest, pattern

FLAGS = ["--samples", "--batch", "--keep-float", "--calibration-method", "--bits", "--work-dir"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("--sample", "--samples"),
        ("--keep_float", "--keep-float"),
        ("--calib", "--calibration-method"),
        ("--Bits", "--bits"),
        ("--workdir", "--work-dir"),
        ("--bats", "--bits"),
        ("--bar", None),  # only the dashes are alike
        ("--frobnicate", None),
        ("", None),
    ],
)
def test_only_what_is_near_is_suggested(name: str, meant: str | None) -> None:
    assert near(name, FLAGS) == meant


def test_where_nothing_is_near_a_few_names_are_listed() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    nodes = [f"node{index:04}" for index in range(1000)]
    assert nearest("zzz", nodes) == f"known: {', '.join(nodes[:8])} and 992 more"
    assert nearest("node099", nodes).startswith("did you mean 'node099")


def test_patterns_match_their_names_alone() -> None:
    names = ["conv.1", "/layer1/Conv (2)"]
    found = re.compile(pattern(names))
    assert [name for name in (*names, "conv.10", "conv_1") if found.search(name)] == names
