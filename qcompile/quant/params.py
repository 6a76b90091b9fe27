"""Quantizers: what a tensor's integers mean. Specs are decisions without numbers, params hold the numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qcompile.quant.grid import WEIGHTS, Grid, signed
from qcompile.quant.powers import is_power, power_above

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class ActivationSpec:
    """What placement decides about an activation tensor: its grid and constraints, no numbers.

    `lower` and `upper` bound the real values (an absorbed Relu6 gives 0 and 6: those of the grid never leave them).
    `even_zero_point` is for outputs of kernels that round after adding the zero point.
    `fixed` is a quantizer that the operator dictates; calibration leaves it alone.
    `symmetric`: the zero point is 0. `centred`: of a range on both sides of 0 it is the middle of the grid, where the
    scale then is at most so many times as large (at twice it always is). `power_of_two`: the scale is a power of two;
    where the bounds lie within the grid then, the quantizer has the codes between them alone.
    """

    grid: Grid
    lower: float = -np.inf
    upper: float = np.inf
    even_zero_point: bool = False
    fixed: Quantizer | None = None
    symmetric: bool = False
    centred: float = 1.0
    power_of_two: bool = False

    @property
    def bits(self) -> int:
        """Those of the grid."""
        return self.grid.bits

    def serves(self, bits: int) -> bool:
        """Say whether this is the grid for so many bits: 0 .. 127 too for 8, around a zero point of 0 in int8."""
        return bits in (self.bits, self.bits + (self.symmetric and self.grid == signed(8).half))


@dataclass(frozen=True)
class Quantizer:
    """Affine activation quantizer, per tensor: q = clip(rint(x / scale) + zero_point, grid.low, grid.high).

    `scale` is a float32 value above 0 in the tensor's unit per step; `zero_point` an integer of the grid.
    """

    grid: Grid
    scale: float
    zero_point: int

    @property
    def bits(self) -> int:
        """Those of the grid."""
        return self.grid.bits

    @property
    def low(self) -> float:
        """The real value of the lowest code."""
        return (self.grid.low - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The real value of the highest code."""
        return (self.grid.high - self.zero_point) * self.scale


def plain_offset(bits: int) -> int:
    """Return the least integer of the plain signed grid of a weight: -2**(bits-1), but -127 at 8 bits."""
    return max(-(1 << bits - 1), WEIGHTS.low)


def largest_code(bits: int) -> int:
    """Return the largest code of a weight: 2**bits - 1, but 254 at 8 bits."""
    return (1 << bits - 1) - 1 - plain_offset(bits)


@dataclass(frozen=True)
class WeightSpec:
    """What is asked of the scales of a weight: one for all channels (`per_tensor`), powers of two.

    So many weights of a channel share a scale as a `block` has; all where it is 0.
    """

    per_tensor: bool = False
    power_of_two: bool = False
    block: int = 0

    @property
    def is_free(self) -> bool:
        """Say whether every channel may have any scale: corrections and training then change them."""
        return not (self.per_tensor or self.power_of_two)

    def raised(self, scale: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scales [C] that obey this and are at least `scale`, as near as may be."""
        largest = np.full_like(scale, scale.max()) if self.per_tensor else scale
        return power_above(largest).astype(np.float32) if self.power_of_two else largest

    def obeyed_by(self, scale: NDArray[np.float32]) -> bool:
        """Say whether scales [C] are as asked."""
        return (not self.per_tensor or bool(np.all(scale == scale[:1]))) and (not self.power_of_two or is_power(scale))


@dataclass(frozen=True)
class WeightQuantizer:
    """Weight quantizer on the int8 lattice, per channel: real = scale * (codes * step + offset).

    `codes` uint8, the weight's shape, in 0 .. largest_code(bits); `axis` the output-channel axis; `scale` float32 [C],
    the real value of one int8 step; `step` and `offset` int8 [C]. The integers codes * step + offset are those of the
    grid `WEIGHTS`. The plain signed w-bit grid is step 1, offset plain_offset(w). The scales obey `spec`.

    With blocks the weight is a matrix, they lie along its other axis, and the vectors have those of all, row by row.
    """

    bits: int
    axis: int
    codes: NDArray[np.uint8] = field(repr=False)
    scale: NDArray[np.float32] = field(repr=False)
    step: NDArray[np.int8] = field(repr=False)
    offset: NDArray[np.int8] = field(repr=False)
    spec: WeightSpec = WeightSpec()

    @property
    def channels(self) -> int:
        """How many outputs the weight has."""
        return int(self.codes.shape[self.axis])

    @property
    def shared_shape(self) -> tuple[int, ...]:
        """The shape of what has a scale: [C], or that of the matrix in blocks."""
        if not self.spec.block:
            return (self.channels,)
        sizes = enumerate(self.codes.shape)
        return tuple(size if axis == self.axis else size // self.spec.block for axis, size in sizes)

    def along(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Reshape a vector of what has a scale so that it broadcasts over the weight."""
        if self.spec.block:
            return np.repeat(values.reshape(self.shared_shape), self.spec.block, 1 - self.axis)
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return values.reshape(shape)

    def of_channels(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return a vector [C] with a value for each that has a scale."""
        if not self.spec.block:
            return values
        return np.broadcast_to(np.expand_dims(values, 1 - self.axis), self.shared_shape).ravel()

    def rows(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return values of the weight's shape as rows [of what has a scale, of what shares it]."""
        if not self.spec.block:
            return np.moveaxis(values, self.axis, 0).reshape(self.channels, -1)
        if self.axis == 0:
            return values.reshape(-1, self.spec.block)
        return values.reshape(-1, self.spec.block, self.channels).swapaxes(1, 2).reshape(-1, self.spec.block)

    def lattice(self) -> NDArray[np.int32]:
        """Return codes * step + offset, the weight's shape."""
        step, offset = (self.along(values.astype(np.int32)) for values in (self.step, self.offset))
        result: NDArray[np.int32] = self.codes.astype(np.int32) * step + offset
        return result

    def integers(self) -> NDArray[np.int8]:
        """Return the int8 weight the kernel reads, the weight's shape."""
        integers: NDArray[np.int8] = self.lattice().astype(WEIGHTS.container)
        return integers

    def dequantize(self) -> NDArray[np.float32]:
        """Return the float32 weight that the integers stand for."""
        result: NDArray[np.float32] = self.integers().astype(np.float32) * self.along(self.scale)
        return result
