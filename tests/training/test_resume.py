"""The command, killed and interrupted: what goes on ends with the same file."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompile.training.work_dir import STATE

ROOT = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
STEPS = 400  # enough for a signal to come in time on a busy machine
COMMAND = (
    f"in.onnx -o out.onnx --data calib.npz --w 3 --a 4 --method adaround --steps {STEPS} --threads 1 -q --work-dir work"
)


@pytest.fixture
def folder(tmp_path: Path, residual_model: onnx.ModelProto, residual_data: dict[str, NDArray[Any]]) -> Path:
    onnx.save(residual_model, tmp_path / "in.onnx")
    np.savez(tmp_path / "calib.npz", **residual_data)
    return tmp_path


def default_signals() -> None:
    """What runs in the background may have been told to ignore them, and a child inherits that."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "qcompile", *shlex.split(COMMAND), *more]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def complete(folder: Path, *more: str) -> bytes:
    """Run to the end; return the file."""
    process = start(folder, *more)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return (folder / "out.onnx").read_bytes()


def without_a_break(folder: Path) -> bytes:
    """Return the file of a run that nothing disturbs, and leave no trace of it."""
    expected = complete(folder)
    (folder / "out.onnx").unlink()
    shutil.rmtree(folder / "work")
    return expected


def outcomes(folder: Path) -> int:
    """Return how many layers are done."""
    state = folder / "work" / STATE
    return len(json.loads(state.read_text())["outcomes"]) if state.exists() else -1


def wait_for(process: subprocess.Popen[str], folder: Path, least: int) -> None:
    while process.poll() is None and outcomes(folder) < least:
        time.sleep(0.005)


def test_killed_three_times(folder: Path) -> None:
    expected = without_a_break(folder)
    moments = random.Random(0)
    for kill in range(3):
        process = start(folder, *(["--resume"] if kill else []))
        wait_for(process, folder, kill)  # one layer more than the last time
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert not (folder / "out.onnx").exists()  # else it was not killed
    assert complete(folder, "--resume") == expected


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted(folder: Path, number: signal.Signals) -> None:
    expected = without_a_break(folder) if number is signal.SIGINT else b""
    process = start(folder)
    wait_for(process, folder, 1)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == f"error: interrupted; go on with: qcompile {COMMAND} --resume"
    assert {path.name for path in folder.iterdir()} == {"in.onnx", "calib.npz", "work"}
    if expected:
        assert complete(folder, "--resume") == expected


def test_an_interruption_behind_the_verdict_changes_nothing(folder: Path) -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "qcompile", *shlex.split("in.onnx -o out.onnx --data calib.npz --threads 1 -q")]
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=default_signals,
    ) as process:  # fmt: skip
        assert process.stdout is not None and b"w8a8 for ort-cpu" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 0 and b"Traceback" not in said
    assert (folder / "out.onnx").exists()
