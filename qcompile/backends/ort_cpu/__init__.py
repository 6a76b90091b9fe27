"""ONNX Runtime, CPU provider: how files are written for it, what they must satisfy, what its kernels compute."""

from qcompile.backends.ort_cpu.doubts import doubtful_nodes
from qcompile.backends.ort_cpu.reference import IntegerReference
from qcompile.backends.ort_cpu.rules import RULES
from qcompile.backends.ort_cpu.writer import OrtWriter

__all__ = ["RULES", "IntegerReference", "OrtWriter", "doubtful_nodes"]
