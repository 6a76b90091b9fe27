"""What a check of a quantized file comes to: plain values, as `--json` writes them (schema.json)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from qcompile.outcomes import Compared, Speed

SCHEMA_VERSION: Final = 1
WRONG: Final = "wrong"
NOTE: Final = "note"


@dataclass(frozen=True)
class Encoding:
    """How a tensor is quantized: the type of its codes, the bits that they make use of, what shares a scale.

    `symmetric` says that zero is in the middle of the type: zero point 0 of a signed one, 128 of uint8.
    """

    kind: str
    bits: int
    symmetric: bool
    granularity: str

    def __str__(self) -> str:
        used = "" if self.kind.endswith(f"int{self.bits}") else f" ({self.bits} bits used)"
        return f"{self.kind}{used} {'' if self.symmetric else 'a'}symmetric, {self.granularity}"


@dataclass(frozen=True)
class Operators:
    """Nodes of one operator that are quantized alike; `weight` and `data` are None where there is none, or a float one.

    `integer` counts those that run on integers: as the runtime says itself, or, where it is not here, as the rules do;
    None where these do not know.
    """

    op: str
    nodes: int
    weight: Encoding | None
    data: Encoding | None
    integer: int | None


@dataclass(frozen=True)
class Found:
    """A broken rule: its code and title, how bad it is, the node (or tensor) and what is wrong there."""

    code: str
    title: str
    severity: str
    node: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What an installed runtime says itself: `refused` is its message where it does not load the file.

    `kernels` are the operators of its optimized graph. Of the layers that were meant for integers, those in `floating`
    run in float; `layers` is how many were meant.
    """

    runtime: str
    refused: str = ""
    kernels: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    floating: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """All that is known about a quantized file on one target.

    `float_bytes`, `agreement` and `speed` are those against the float model, None without it; `unoptimized` compares
    the file with itself run without optimizations. `accumulator_bits` is what int32 sums need at most; 0 where no
    weight is known.
    """

    file: str
    target: str
    producer: str
    form: str
    opset: int
    bytes: int
    operators: list[Operators]
    findings: list[Found]
    verdict: Verdict | None
    accumulator_bits: int
    float_bytes: int | None = None
    agreement: Compared | None = None
    unoptimized: Compared | None = None
    speed: Speed | None = None
    schema: int = SCHEMA_VERSION

    @property
    def faults(self) -> list[Found]:
        """The findings that count: notes, which may be meant so, left out."""
        return [found for found in self.findings if found.severity != NOTE]

    def by_code(self) -> Iterator[tuple[Found, list[Found]]]:
        """Yield the first finding of every code and all of that code, in the order of the codes."""
        for code in dict.fromkeys(found.code for found in self.findings):
            same = [found for found in self.findings if found.code == code]
            yield same[0], same
