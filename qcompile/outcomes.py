"""What came out: what validation found out about an emitted file, and what became of each piece in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Number: TypeAlias = float  # where a field is called float


@dataclass(frozen=True)
class FloatNode:
    """A node that the plan keeps float, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class MissingKernel:
    """A node that should run on an integer kernel and does not: what it runs on, and the rule that it breaks.

    `kernel` is "gone" where the node is not in ONNX Runtime's optimized graph.
    """

    node: str
    kernel: str
    rule: str


@dataclass(frozen=True)
class Fused:
    """How many nodes are planned for integer kernels, how many run on them, and those that do not."""

    planned: int
    integer: int
    missing: list[MissingKernel] = field(default_factory=list)


@dataclass(frozen=True)
class Size:
    """Bytes of the float model and of the emitted one."""

    float: int
    emitted: int


@dataclass(frozen=True)
class Speed:
    """Seconds of processor time of one run of a `batch`; half of all rounds have a speedup in low .. high."""

    float: Number
    emitted: Number
    speedup: Number
    low: Number
    high: Number
    rounds: int
    batch: int
    threads: int

    @property
    def slower(self) -> bool:
        """Whether the emitted file is slower, in the two decimals that are printed: 1.00x is no loss."""
        return round(self.speedup, 2) < 1


@dataclass(frozen=True)
class Compared:
    """Agreement of two models on some samples: the figures of `Agreement.summary` for each output."""

    samples: int
    outputs: dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Judged(Compared):
    """The same with the float model; no number was fitted to `held_back` of the samples."""

    held_back: int


@dataclass(frozen=True)
class LayerError:
    """What one layer errs by itself, on exact inputs."""

    node: str
    sqnr_db: float


@dataclass(frozen=True)
class Top1:
    """Percent of labelled samples that both models get right."""

    samples: int
    float: Number
    emitted: Number


@dataclass(frozen=True)
class Audit:
    """What validation found out about an emitted file.

    `onnxruntime` is the version that it ran on. `bits` counts weights and activation quantizers by their bits, as text;
    `kernels` the nodes of ONNX Runtime's optimized graph by operator. `agreement` is with the float model,
    `unoptimized` of the run with all optimizations off with the optimized one; both and `speed` are None without
    samples, `top1` is without labels. `fused` and `speed` are None where the target has no integer kernels. Where an
    output differs much, `worst_layers` has those that err most alone.
    """

    onnxruntime: str
    bits: dict[str, dict[str, int]]
    float_nodes: list[FloatNode]
    kernels: dict[str, int]
    fused: Fused | None
    size: Size
    agreement: Judged | None = None
    unoptimized: Compared | None = None
    speed: Speed | None = None
    worst_layers: list[LayerError] = field(default_factory=list)
    top1: Top1 | None = None

    @property
    def outputs(self) -> dict[str, Mapping[str, Any]]:
        """The figures of agreement of every output; none without samples."""
        return self.agreement.outputs if self.agreement else {}


@dataclass(frozen=True)
class Corrected:
    """What affine correction came to: how many layers it changed, which it left alone, and how well they are then.

    `worst` is the largest error that is left in a layer, as a share of the variance of its float values; `unseen` is
    the number of layers that could not be looked at.
    """

    layers: int
    refused: list[str]
    worst: float
    unseen: int


BY_HEART = 2.0  # times the error on the samples of training that a region has on others: it has learnt those by heart


@dataclass(frozen=True)
class Outcome:
    """What became of one piece: `what` in words, its error on held-back samples `before` and `after` (relative to the
    float values), or the `reason` why it was not trained. `trained` says that the plan has the result; `fitted` is then
    the error on as many samples that it was trained on, far below `after` where the piece has learnt them by heart.
    `cpu_seconds` is what all that took.
    """

    piece: str
    what: str
    trained: bool = False
    before: float | None = None
    after: float | None = None
    fitted: float | None = None
    reason: str = ""
    cpu_seconds: float = field(default=0.0, compare=False)

    @property
    def by_heart(self) -> bool:
        """Whether it has learnt its samples by heart."""
        return self.fitted is not None and self.after is not None and self.after > BY_HEART * self.fitted
