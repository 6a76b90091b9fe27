"""qcompile: float ONNX in, validated low-bit ONNX on integer kernels out.

Names are imported when they are first used: the command line's help needs none of the libraries behind them.
"""

import importlib

TYPE_CHECKING = False  # that of typing, whose import would take a third of what starting takes
if TYPE_CHECKING:
    from typing import Any

    from qcompile.api import Result, compile, open_model, plan_only, report
    from qcompile.checking import Check, check
    from qcompile.config import Config
    from qcompile.errors import EmissionError, InputError, QCompileError
    from qcompile.passmanager import Pass, PassManager, PassRun
    from qcompile.pipeline import build
    from qcompile.qmodel import QModel
    from qcompile.quant.plan import Plan
    from qcompile.simulator import simulate

__all__ = [
    "Check",
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
    "check",
    "compile",
    "open_model",
    "plan_only",
    "report",
    "simulate",
]
_HOMES = {
    "api": ("Result", "compile", "open_model", "plan_only", "report"),
    "checking": ("Check", "check"),
    "config": ("Config",),
    "errors": ("EmissionError", "InputError", "QCompileError"),
    "passmanager": ("Pass", "PassManager", "PassRun"),
    "pipeline": ("build",),
    "qmodel": ("QModel",),
    "quant.plan": ("Plan",),
    "simulator": ("simulate",),
}


def __getattr__(name: str) -> "Any":
    home = next((home for home, names in _HOMES.items() if name in names), "")
    try:
        module = importlib.import_module(f"qcompile.{home or name}")
    except ModuleNotFoundError as error:
        if error.name != f"qcompile.{name}":
            raise
        raise AttributeError(f"module 'qcompile' has no attribute {name!r}") from None
    globals()[name] = found = getattr(module, name) if home else module
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
