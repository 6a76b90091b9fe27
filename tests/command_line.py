"""The command line in tests: what a command ends with, and the arguments that most give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

DATA = ("--data", "calib.npz", "--threads", "1")
COMPILE = ("in.onnx", "-o", "out.onnx", *DATA)
PLAIN = ("in.onnx", "-o", "out.onnx")


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
