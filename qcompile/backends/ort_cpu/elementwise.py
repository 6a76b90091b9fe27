"""QLinearAdd and QLinearMul as ONNX Runtime computes them on x86-64, on Arm and in WebAssembly, code for code.

Each formula takes codes (uint8, shapes that broadcast) with their quantizers and returns rounded values with the zero
point added, before clamping. All compute the same real number; they differ where it lies so near to a half that float32
errors, or on Arm those of 22-bit multipliers, decide. One code that differs early becomes 28 to 42 dB at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.params import Quantizer

Codes = NDArray[np.uint8]
Array = NDArray[Any]
MARGIN: Final = 0.02  # of a step: more than 256 steps move within so many units of float32, and all errors together
SIGMOID_MARGIN: Final = 1e-4  # of a step: ten times what float32 errors of the function come to
Formula = Callable[[Codes, Quantizer, Codes, Quantizer, Quantizer], Array]


def add(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearAdd on x86-64: two fused multiply-adds, each rounded once, the zero point added before rounding."""
    ra, rb = (np.float32(q.scale) / np.float32(output.scale) for q in (qa, qb))
    shift = np.float32(output.zero_point) - (ra * np.float32(qa.zero_point) + rb * np.float32(qb.zero_point))
    return np.rint(_fused(a, ra, _fused(b, rb, shift)))


def add_swapped(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearAdd on x86-64 where the first operand broadcasts over the second."""
    return add(b, qb, a, qa, output)


def add_in_integers(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearAdd on Arm: 22-bit multipliers of one exponent, halves away from zero, then the zero point."""
    ratios = [np.float32(q.scale) / np.float32(output.scale) for q in (qa, qb)]
    shift = 22 - int(np.frexp(max(ratios))[1])
    first, second = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    if min(ratios) < 2**-14 or max(ratios) >= 256 or max(first, second) >= 2**22:
        return add_in_steps(a, qa, b, qb, output)
    total = _centred(a, qa) * first + _centred(b, qb) * second
    rounded: Array = (total - (total < 0) + (1 << shift - 1)) >> shift
    return rounded + output.zero_point


def add_in_steps(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearAdd in WebAssembly: every operation rounded by itself, the zero point added last."""
    total = _real(a, qa) + _real(b, qb)
    result: Array = np.rint(total / np.float32(output.scale) + np.float32(output.zero_point))
    return result


def multiply(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearMul on x86-64: an exact integer product, one multiplier, the zero point added before rounding."""
    product, multiplier = _product(a, qa, b, qb, output)
    result: Array = np.rint(product * multiplier + np.float32(output.zero_point))
    return result


def multiply_fused(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearMul on Arm: as on x86-64, but multiplier and zero point in one operation."""
    product, multiplier = _product(a, qa, b, qb, output)
    return np.rint(_fused(product, multiplier, np.float32(output.zero_point)))


def multiply_in_steps(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> Array:
    """QLinearMul in WebAssembly: as `add_in_steps`."""
    product = _real(a, qa) * _real(b, qb)
    result: Array = np.rint(product / np.float32(output.scale) + np.float32(output.zero_point))
    return result


FORMULAS: Final[dict[str, tuple[Formula, ...]]] = {
    "Add": (add, add_swapped, add_in_integers, add_in_steps),
    "Mul": (multiply, multiply_fused, multiply_in_steps),
}


@dataclass(frozen=True)
class Operation:
    """An addition or a multiplication (`op` of `FORMULAS`) of pairs of codes; `a` and `b` [K], uint8.

    Quantizers are given in the order first operand, second operand, output.
    """

    op: str
    a: Codes
    b: Codes

    @classmethod
    def of_all_pairs(cls, op: str, a: Codes, b: Codes) -> Operation:
        """Return the operation on every code of `a` with every code of `b`."""
        first, second = np.meshgrid(a, b)
        return cls(op, first.reshape(-1), second.reshape(-1))

    def doubtful(self, quantizers: Sequence[Quantizer]) -> Operation:
        """Return the pairs on which the formulas could differ, also where a scale moves by `TRIES` units."""
        qa, qb, output = quantizers
        real = [_centred(codes, q) * np.float64(np.float32(q.scale)) for codes, q in ((self.a, qa), (self.b, qb))]
        steps = (real[0] + real[1] if self.op == "Add" else real[0] * real[1]) / np.float32(output.scale)
        place = steps + output.zero_point
        some = near_halves(steps, MARGIN) & (place > output.grid.low - 1) & (place < output.grid.high + 1)
        return Operation(self.op, self.a[some], self.b[some])

    def is_settled(self, quantizers: Sequence[Quantizer]) -> bool:
        """Say whether all formulas give the same codes."""
        qa, qb, output = quantizers
        formulas = FORMULAS[self.op]
        found = [output.grid.clip(formula(self.a, qa, self.b, qb, output)) for formula in formulas]
        return all(np.array_equal(found[0], other) for other in found[1:])


@dataclass(frozen=True)
class SigmoidTable:
    """A Sigmoid: its kernel is a table made of float32 values, whose last bits differ between processors."""

    def doubtful(self, quantizers: Sequence[Quantizer]) -> SigmoidTable:
        """Return this: a table is small."""
        return self

    def is_settled(self, quantizers: Sequence[Quantizer]) -> bool:
        """Say whether no code of (input, output) lies so near to a half that the last bits decide it."""
        given, output = quantizers
        x = _centred(given.grid.codes, given) * np.float64(np.float32(given.scale))
        steps = 1 / (1 + np.exp(-x)) / np.float32(output.scale)
        return not near_halves(steps[steps + output.zero_point < output.grid.high + 1], SIGMOID_MARGIN).any()


def near_halves(steps: NDArray[np.float64], margin: float) -> NDArray[np.bool_]:
    """Say which values lie within `margin` of a half."""
    result: NDArray[np.bool_] = np.abs(steps - np.floor(steps) - 0.5) < margin
    return result


def _fused(a: Array, factor: np.float32, summand: Array | np.float32) -> Array:
    """Return a * factor + summand, rounded once: float64 holds the product of a code, or of two, exactly."""
    result: Array = (a.astype(np.float64) * np.float64(factor) + summand).astype(np.float32)
    return result


def _centred(codes: Codes, quantizer: Quantizer) -> NDArray[np.int64]:
    return codes.astype(np.int64) - quantizer.zero_point


def _real(codes: Codes, quantizer: Quantizer) -> NDArray[np.float32]:
    result: NDArray[np.float32] = _centred(codes, quantizer).astype(np.float32) * np.float32(quantizer.scale)
    return result


def _product(a: Codes, qa: Quantizer, b: Codes, qb: Quantizer, output: Quantizer) -> tuple[Array, np.float32]:
    product = (_centred(a, qa) * _centred(b, qb)).astype(np.float32)
    return product, np.float32(qa.scale) * np.float32(qb.scale) / np.float32(output.scale)
