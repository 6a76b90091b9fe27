"""Benchmarks keep up with the compiler: those that need no assets run, and what they alter is there."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.mark.skipif(util.find_spec("torch") is None, reason="torch, which the step is compared with, is not installed")
def test_a_training_step_is_the_one_in_torch() -> None:
    command = [sys.executable, str(TOOLS / "bench_step.py"), "--regions", "a", "--repeats", "1"]
    subprocess.run(command, check=True, capture_output=True)  # fails where the losses differ


def test_an_ablation_alters_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    variations = import_module("bench_ablation").VARIATIONS
    for constant in [constant for item in variations.values() for constant in item.constants]:
        module, _, name = constant.partition("=")[0].partition(":")
        name, _, key = name.partition(".")
        value = getattr(import_module(module), name)
        assert not key or key in map(str, value), constant


def test_an_ablation_passes_flags_that_the_compiler_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    variations = import_module("bench_ablation").VARIATIONS
    known = subprocess.run([sys.executable, "-m", "qcompile", "--help"], check=True, capture_output=True, text=True)
    for flags in [item.flags for item in variations.values() if item.flags]:
        assert flags[0] in known.stdout
