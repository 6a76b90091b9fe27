"""What errors say, and suggestions in them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qcompile
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


def test_every_error_of_a_user_has_a_remedy() -> None:
    folder = Path(qcompile.__file__).parent
    without = []
    for path in [*folder.rglob("*.py"), *(folder / "passes").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if name in ("InputError", "RaggedError") and not any(item.arg == "remedy" for item in node.keywords):
                without.append(f"{path.name}: {ast.unparse(node)}")
    assert without == [f"cli.py: InputError(MISSING['{command}'])" for command in ("compile", "check")]  # texts have it
