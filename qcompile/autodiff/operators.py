"""ONNX operators as methods of the tape: one call, one node."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Value: TypeAlias = str  # the name of a tensor; "" is an optional input that is absent
Operand: TypeAlias = Value | float | Sequence[int] | NDArray[Any] | np.generic


class Operators(ABC):
    """The operators that differentiation rules are written in.

    An operand may be a constant: a float stands for a scalar of the graph's float type, an int for an int64 scalar, a
    list of ints for an int64 vector, an array for itself. Attributes are keywords.
    """

    @abstractmethod
    def op(self, op_type: str, *inputs: Operand, domain: str = "", output: Value = "", **attributes: Any) -> Value:
        """Append one node with one output."""

    @staticmethod
    def _of(op_type: str) -> Callable[..., Value]:
        def append(self: Operators, *inputs: Operand, **attributes: Any) -> Value:
            return self.op(op_type, *inputs, **attributes)

        append.__doc__ = f"Append {op_type}."
        return append

    abs, neg, reciprocal, sign = _of("Abs"), _of("Neg"), _of("Reciprocal"), _of("Sign")
    exp, log, sqrt, erf = _of("Exp"), _of("Log"), _of("Sqrt"), _of("Erf")
    sin, cos, tanh, sigmoid = _of("Sin"), _of("Cos"), _of("Tanh"), _of("Sigmoid")
    hard_sigmoid, clip, round = _of("HardSigmoid"), _of("Clip"), _of("Round")
    add, sub, mul, div, pow = _of("Add"), _of("Sub"), _of("Mul"), _of("Div"), _of("Pow")
    max, min = _of("Max"), _of("Min")
    equal, greater, less = _of("Equal"), _of("Greater"), _of("Less")
    logical_and, logical_or, logical_not = _of("And"), _of("Or"), _of("Not")
    where, cast, expand, identity = _of("Where"), _of("Cast"), _of("Expand"), _of("Identity")
    matmul, gemm, conv, conv_transpose = _of("MatMul"), _of("Gemm"), _of("Conv"), _of("ConvTranspose")
    reduce_sum, reduce_mean = _of("ReduceSum"), _of("ReduceMean")
    flatten = _of("Flatten")
    reshape, transpose, squeeze, unsqueeze = _of("Reshape"), _of("Transpose"), _of("Squeeze"), _of("Unsqueeze")
    concat, slice, pad, gather = _of("Concat"), _of("Slice"), _of("Pad"), _of("Gather")
    shape, size, range, nonzero = _of("Shape"), _of("Size"), _of("Range"), _of("NonZero")
    scatter_elements, scatter_nd = _of("ScatterElements"), _of("ScatterND")
    depth_to_space, space_to_depth, resize = _of("DepthToSpace"), _of("SpaceToDepth"), _of("Resize")
    quantize_linear, dequantize_linear = _of("QuantizeLinear"), _of("DequantizeLinear")
