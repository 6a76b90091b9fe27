"""Files of float operators on fake-quantized values."""

from __future__ import annotations

from qcompile.backends.academic.rules import RULES
from qcompile.backends.academic.writer import AcademicWriter

__all__ = ["RULES", "AcademicWriter"]
