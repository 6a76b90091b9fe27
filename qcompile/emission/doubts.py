"""Nodes whose kernels round differently on different processors, and by which scales that can be mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, Self

import numpy as np

from qcompile.quant.params import Quantizer
from qcompile.quant.plan import Edge

TRIES: Final = 512  # most scales need fewer than 20; those in simple ratios, whose results are halves, up to 400
Quantizers = Mapping[Edge, Quantizer]


class Computation(Protocol):
    """What a node computes, on the codes of quantizers that are given in the order operands, output."""

    def doubtful(self, quantizers: Sequence[Quantizer]) -> Self:
        """Return the same of those codes alone that could be rounded differently, also where a scale moves a little."""

    def is_settled(self, quantizers: Sequence[Quantizer]) -> bool:
        """Say whether all processors make the same codes."""


@dataclass(frozen=True)
class Doubt:
    """A node that processors could round differently: keys of the quantizers of operands and output, output last.

    `fixed` are quantizers that no plan holds: they do not move.
    """

    node: str
    keys: tuple[Edge, ...]
    operation: Computation
    fixed: Quantizers = field(default_factory=dict)

    @property
    def output(self) -> Edge:
        """The key of the quantizer that may move."""
        return self.keys[-1]

    def narrowed(self, quantizers: Quantizers) -> Doubt:
        """Return the doubt about those codes alone that could be rounded differently."""
        return replace(self, operation=self.operation.doubtful(self._of(quantizers)))

    def is_settled(self, quantizers: Quantizers) -> bool:
        """Say whether all processors make the same codes."""
        return self.operation.is_settled(self._of(quantizers))

    def _of(self, quantizers: Quantizers) -> list[Quantizer]:
        return [self.fixed.get(key) or quantizers[key] for key in self.keys]


def scales_from(scale: float, towards: float = np.inf) -> Iterator[float]:
    """Yield `scale` and the float32 values behind it, `TRIES` in all."""
    value = np.float32(scale)
    for _ in range(TRIES):
        yield float(value)
        value = np.nextafter(value, np.float32(towards))
