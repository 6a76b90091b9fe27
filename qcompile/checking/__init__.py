"""What is to be said about a quantized ONNX file, of any tool: what is quantized, what it runs on, what is wrong."""

from qcompile.checking.checker import check
from qcompile.checking.result import Check

__all__ = ["Check", "check"]
