"""Benchmarks keep up with the compiler: those that need no assets run, and what they alter is there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest

from qcompile.cli import OPTIONS

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.mark.skipif(util.find_spec("torch") is None, reason="torch, which the step is compared with, is not installed")
def test_a_training_step_is_the_one_in_torch() -> None:
    command = [sys.executable, str(TOOLS / "bench_step.py"), "--regions", "a", "--repeats", "1"]
    subprocess.run(command, check=True, capture_output=True)  # fails where the losses differ


@pytest.fixture
def variations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the ablation compares."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return list(import_module("bench_ablation").VARIATIONS.values())


def test_an_ablation_alters_what_is_there(variations: list[Any]) -> None:
    for constant in [constant for item in variations for constant in item.constants]:
        module, _, name = constant.partition("=")[0].partition(":")
        name, _, key = name.partition(".")
        value = getattr(import_module(module), name)
        assert not key or key in map(str, value), constant


def test_an_ablation_gives_flags_that_the_compiler_takes(variations: list[Any]) -> None:
    known = {name for option in OPTIONS for name in option.opts}
    assert {flag for item in variations for flag in item.flags[::2]} <= known
