"""Standard streams that are closed, full or read by nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parent.parent
PLAN = ("in.onnx", "--plan", "--w", "4", "--report", "r.json")
FULL = Path("/dev/full")


def closed(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


def run(
    folder: Path, model: onnx.ModelProto, *arguments: str, prepare: Callable[[], None], stdout: int
) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote to stderr."""
    onnx.save(model, folder / "in.onnx")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "qcompile", *arguments]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, stdout=stdout, stderr=subprocess.PIPE, text=True,
        check=False, preexec_fn=prepare,
    )  # fmt: skip
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("numbers", [(1,), (0, 1, 2)])
def test_closed(tmp_path: Path, residual_model: onnx.ModelProto, numbers: tuple[int, ...]) -> None:
    ended = run(tmp_path, residual_model, *PLAN, prepare=closed(*numbers), stdout=subprocess.DEVNULL)
    assert ended == (0, "") and (tmp_path / "r.json").exists()


def test_read_by_nobody(tmp_path: Path, residual_model: onnx.ModelProto) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = run(tmp_path, residual_model, *PLAN, prepare=lambda: None, stdout=writing)
    os.close(writing)
    assert ended == (0, "") and (tmp_path / "r.json").exists()


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [PLAN, ("--help",), ("--version",)])
def test_full(tmp_path: Path, residual_model: onnx.ModelProto, arguments: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        ended = run(tmp_path, residual_model, *arguments, prepare=lambda: None, stdout=full.fileno())
    assert ended == (0, "warning: not all could be printed: No space left on device\n")
    assert (tmp_path / "r.json").exists() == (arguments == PLAN)
