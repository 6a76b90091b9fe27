"""Benchmarks keep up with the compiler: those that need no assets run, and what they alter is there."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib import import_module, util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcompile.cli import OPTIONS
from qcompile.runtime.session import Session

TOOLS = Path(__file__).resolve().parent.parent / "tools"


@pytest.mark.skipif(util.find_spec("torch") is None, reason="torch, which the step is compared with, is not installed")
def test_a_training_step_is_the_one_in_torch() -> None:
    command = [sys.executable, str(TOOLS / "bench_step.py"), "--regions", "a", "--repeats", "1"]
    subprocess.run(command, check=True, capture_output=True)  # fails where the losses differ


def test_outputs_of_a_process_are_those_of_a_session(tmp_path: Path, residual_model: onnx.ModelProto) -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    onnx.save(residual_model, tmp_path / "model.onnx")
    (tmp_path / "image").write_bytes(image.tobytes())
    feeds = {"image": {"file": str(tmp_path / "image"), "type": "float32", "shape": image.shape}}
    job = {"model": str(tmp_path / "model.onnx"), "inputs": feeds, "output": str(tmp_path / "output")}
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    subprocess.run([sys.executable, str(TOOLS / "run_outputs.py"), str(tmp_path / "jobs.json")], check=True)
    expected = b"".join(array.tobytes() for array in Session(residual_model, threads=1).run({"image": image}).values())
    assert (tmp_path / "output").read_bytes() == expected


def test_every_dependency_has_a_lowest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    project = tomllib.loads((TOOLS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = import_module("lowest_versions").constraints(project)
    names = [line.partition("==")[0] for line in lines]
    assert names[:-1] == [item.partition(">=")[0] for item in project["dependencies"]] and names[-1] == "matplotlib"
    versions = [line.partition("==")[2].partition(";")[0] for line in lines]
    assert all(version.replace(".", "").isdigit() for version in versions)


@pytest.mark.parametrize("found, said", [(b"abc", "equal"), (b"xbx", "2 of 3 bytes"), (b"ab", "2 bytes, not 3")])
def test_platforms_are_compared_byte_by_byte(found: bytes, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    assert said in import_module("check_platforms").difference(b"abc", found)


@pytest.mark.skipif(sys.platform == "win32", reason="runs each case in a fork")
def test_damaged_files_are_refused_in_one_line_or_give_a_right_file() -> None:
    counts = [item for kind in ("plans", "models", "data") for item in (f"--{kind}", "12")]
    command = [sys.executable, str(TOOLS / "check_damage.py"), "--seed", "7", *counts]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("faults: 0\n")


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
