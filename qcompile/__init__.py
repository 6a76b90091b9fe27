"""qcompile: float ONNX in, validated low-bit ONNX on integer kernels out."""

from qcompile.api import Result, compile, open_model, plan_only
from qcompile.config import Config
from qcompile.errors import EmissionError, InputError, QCompileError
from qcompile.passmanager import Pass, PassManager, PassRun
from qcompile.pipeline import build
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan

__all__ = [
    "Config",
    "EmissionError",
    "InputError",
    "Pass",
    "PassManager",
    "PassRun",
    "Plan",
    "QCompileError",
    "QModel",
    "Result",
    "build",
    "compile",
    "open_model",
    "plan_only",
]
