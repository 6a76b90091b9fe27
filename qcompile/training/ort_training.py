"""Engine `ort-training`: the package onnxruntime-training, in an environment of its own, behind two pipes.

It is imported under the name of onnxruntime, so both cannot be installed together.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import InputError, QCompileError
from qcompile.training import ort_training_worker as worker
from qcompile.training.ort_training_forms import differentiable
from qcompile.training.recipe import Settings
from qcompile.training.region import (
    EXPONENT,
    LOSS,
    RECONSTRUCTION,
    STRENGTH,
    STRETCH,
    UNIT_ERROR,
    Region,
    UntrainableError,
)
from qcompile.training.step_graph import DECAY1, DECAY2, EPSILON

Array = NDArray[Any]
PYTHON = "QCOMPILE_ORT_TRAINING_PYTHON"  # the interpreter of that environment
PACKAGES = "onnxruntime-training==1.19.2 onnx==1.17.0"
PLACE = re.compile(r".*(?:was false\.| : |\)|const) (?=[A-Z])")  # of the package's source, in front of its messages
REMEDY = f"python3.11 -m venv DIR, DIR/bin/pip install {PACKAGES}, then set {PYTHON}=DIR/bin/python"


def find_python() -> Path:
    """Return the interpreter of the other environment; raises InputError that says how to make one."""
    given = os.environ.get(PYTHON)
    if not given:
        raise InputError("the engine ort-training is not installed", remedy=REMEDY)
    if not Path(given).is_file():
        raise InputError(f"{PYTHON} names no file", where=given, remedy=REMEDY)
    return Path(given)


class Worker:
    """A process of the other environment. One command has one answer; `close` ends it."""

    def __init__(self, python: Path) -> None:
        self.python = python
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (until close)
        try:
            self._process = subprocess.Popen(
                [python, "-I", worker.__file__],  # -I: nothing of this environment leads it to our packages
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for us: it ends when its pipe does
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"cannot start: {error.strerror}", where=str(python), remedy=REMEDY) from error

    def ask(
        self, command: str, arrays: Mapping[str, Array] | None = None, **facts: Any
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return (answer, arrays); raises QCompileError with the last line it wrote if the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            worker.write_message(self._process.stdin, {"command": command, **facts}, dict(arrays or {}))
            return worker.read_message(self._process.stdout)
        except (OSError, EOFError) as error:
            raise self._ended() from error

    def _ended(self) -> QCompileError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        reason = f": {lines[-1].strip()}" if lines else ""
        what = f"the process of onnxruntime-training ended with code {code}{reason}"
        return QCompileError(what, where=str(self.python), remedy="use --engine ort")

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # it died with something left to write
                pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class PackageTrainer:
    """A region in a process of its own: forward graph there and here the same, gradients by the package.

    Adam and its settings are those of `StepGraph`, so both engines have the same loss curve up to rounding.
    """

    def __init__(self, region: Region, python: Path, threads: int, device: str = "cpu") -> None:
        self.region = region
        model = differentiable(region)
        kept = {tensor.name for tensor in model.graph.initializer}
        self._trained = [name for name in region.parameters if name in kept]
        self._worker = Worker(python)
        try:
            self._ask(
                "open",
                {"model": np.frombuffer(model.SerializeToString(), np.uint8)},
                highest={name: region.parameters[name].highest for name in self._trained},
                loss=LOSS,
                reconstruction=RECONSTRUCTION,
                decays=[DECAY1, DECAY2],
                epsilon=EPSILON,
                threads=threads,
                device=device,
            )
        except BaseException:
            self.close()
            raise

    @staticmethod
    def check(python: Path, device: str) -> None:
        """Raise InputError unless the other environment has the package, and the package the device."""
        process = Worker(python)
        try:
            answer, _ = process.ask("check")
        except QCompileError as error:
            raise InputError(f"the engine ort-training cannot start: {error.what}", remedy=REMEDY) from error
        finally:
            process.close()
        if device not in answer.get("devices", ()):
            raise InputError(
                f"onnxruntime-training does not run on {device} here",
                where=answer.get("failure", str(python)),
                remedy="use --device cpu, or --engine ort",
            )

    @property
    def state(self) -> Mapping[str, Array]:
        """The parameters and the moments of Adam as they stand; a parameter that no output reads stays as it was."""
        return {name: item.start for name, item in self.region.parameters.items()} | self._ask("state")

    def reset(self) -> None:
        """Go back to the start."""
        self._ask("reset")

    def run(self, feeds: dict[str, Array], settings: Settings, unit_error: float) -> float:
        """Take one step; return the squared error it saw. `unit_error` is that of the region before training."""
        scalars = {STRENGTH: settings.strength, EXPONENT: settings.exponent, STRETCH: settings.stretch}
        scalars |= {UNIT_ERROR: unit_error}
        given = {name: np.array(value, np.float32) for name, value in scalars.items()}
        rates = {name: settings.rates[self.region.parameters[name].kind] for name in self._trained}
        return float(self._ask("step", {**feeds, **given}, rates=rates)["error"])

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _ask(self, command: str, arrays: Mapping[str, Array] | None = None, **facts: Any) -> dict[str, Any]:
        """Return the answer with its arrays in it; raises UntrainableError where the package refuses the region."""
        answer, found = self._worker.ask(command, arrays, **facts)
        if "failure" in answer:
            raise UntrainableError(f"onnxruntime-training: {PLACE.sub('', answer['failure'])}")
        return {**answer, **found}
