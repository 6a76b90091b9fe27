"""What makes a quantized file compute something else than it says, on any runtime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcompile.checking.graph import DEQUANTIZE, QUANTIZE, QuantizedFile
from qcompile.checking.layers import BYTES, Layer, grid, layers, rows
from qcompile.emission.emitted import Finding
from qcompile.ir.protos import opset

INT32: Final = 2**31 - 1
PER_CHANNEL: Final = 13  # the opset from which on QuantizeLinear and DequantizeLinear have an axis


@dataclass(frozen=True)
class Accumulator:
    """The largest sum of products that a layer can come to, the same with its bias, and the largest bias."""

    node: str
    products: int
    total: int
    bias: int

    @property
    def bits(self) -> int:
        """How many bits it takes, that of the sign included."""
        return self.total.bit_length() + 1


def accumulators(file: QuantizedFile) -> Iterator[Accumulator]:
    """Yield the accumulator of every layer whose weights are known: no input on the grid of its codes makes it larger.

    With positive weights adding up to P and negative ones to -N, sums of products with codes from low <= 0 to high lie
    in P*low - N*high .. P*high - N*low.
    """
    for layer in layers(file):
        weights = rows(layer, file)
        if weights is None or layer.data is None or layer.data.zero_point is None or layer.data.zero_point.size > 1:
            continue
        if layer.data.kind not in BYTES:  # summed in float
            continue
        low, high = (code - int(layer.data.zero_point) for code in grid(file, layer.data.tensor))
        positive, negative = np.maximum(weights, 0).sum(1), np.maximum(-weights, 0).sum(1)
        most, least, bias = positive * high - negative * low, positive * low - negative * high, bias_codes(file, layer)
        products, total = (int(np.maximum(most + start, -least - start).max()) for start in (0, bias))
        yield Accumulator(layer.node.name, products, total, int(np.abs(bias).max()))


def bias_codes(file: QuantizedFile, layer: Layer) -> NDArray[np.int64]:
    """Return the bias of a layer in steps of its accumulator, [C]; [0] where there is none, or a float one."""
    node = file.maker(layer.bias, DEQUANTIZE) if layer.bias else None
    on_codes = layer.bias and layer.node.op_type in ("QLinearConv", "QGemm")
    codes = file.integers(node.input[0] if node is not None else layer.bias) if node is not None or on_codes else None
    return np.zeros(1, np.int64) if codes is None else codes.reshape(-1)


def no_wrapping(file: QuantizedFile) -> Iterator[Finding]:
    """Sums of products fit into int32, which kernels add in: beyond it they wrap."""
    for found in accumulators(file):
        if found.products > INT32:
            yield found.node, f"sums of products can come to {found.products:.3g}, int32 holds 2.15e+09"


def room_for_sums(file: QuantizedFile) -> Iterator[Finding]:
    """A bias leaves room in int32 for the products that are added to it."""
    for found in accumulators(file):
        if found.products <= INT32 < found.total:
            yield found.node, f"its bias is up to {found.bias}, and sums with it can come to {found.total}"


def whole_bias(file: QuantizedFile) -> Iterator[Finding]:
    """No bias has been cut off at the ends of int32, as it is where its scale is too small for it."""
    for layer in layers(file):
        if np.abs(bias_codes(file, layer)).max(initial=0) >= INT32:
            yield layer.node.name, "its bias stands at the end of int32"


def axis_known(file: QuantizedFile) -> Iterator[Finding]:
    """Scales per channel need opset 13: before, DequantizeLinear has no axis."""
    for node in file.nodes if opset(file.model) < PER_CHANNEL else ():
        if node.op_type in (QUANTIZE, DEQUANTIZE) and any(item.name == "axis" for item in node.attribute):
            yield node.name, f"it has an axis at opset {opset(file.model)}"


def sound_scales(file: QuantizedFile) -> Iterator[Finding]:
    """Scales are finite and above 0."""
    for node in file.nodes:
        scale = file.value(node.input[1]) if node.op_type in (QUANTIZE, DEQUANTIZE) else None
        if scale is not None and not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node.name, f"its scale is {float(scale.min()):g}"
