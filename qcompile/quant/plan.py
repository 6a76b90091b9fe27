"""The plan: every decision about one model, and the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import QCompileError
from qcompile.flags import BITS, FLOAT_BITS
from qcompile.quant.params import ActivationSpec, Quantizer, WeightQuantizer

ENDS = "first or last"  # the reason of layers that have the bits of these
Bias = Literal["int32", "float32"]
WIDE = BITS[1]  # bits of an activation that is not narrow


class Form(StrEnum):
    """How a node of the normalised graph runs in the emitted file."""

    COMPUTE = "compute"  # Conv, Gemm, MatMul on an integer kernel
    ARITHMETIC = "arithmetic"  # Add, Mul, pools, Concat ...: DequantizeLinear in, QuantizeLinear out
    CODES = "codes"  # moves or clips codes: input and output share one quantizer
    ABSORBED = "absorbed"  # a clip that the quantizer of its producer carries out
    FLOAT = "float"


@dataclass(frozen=True)
class NodePlan:
    """One node's decision: its form, why, and for a compute node the bits of its weight and of its data inputs.

    Of `FLOAT_BITS`, 32, are inputs without quantizers. So many weights of an output share a scale as a `block` has, all
    where it is 0.
    """

    form: Form
    reason: str = ""
    weight_bits: int = 0
    input_bits: int = 0
    block: int = 0

    @property
    def reads_codes(self) -> bool:
        """Say whether it works on quantized values."""
        return self.form is not Form.FLOAT and self.input_bits != FLOAT_BITS


@dataclass(frozen=True)
class Unit:
    """A piece that is reconstructed at once: node names in topological order, and boundary tensors."""

    name: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Boundary:
    """Two adjacent units, which may be trained together: all that leaves the first goes to the second.

    `differential` is the capacity of the second less that of the first, in bits. `homogeneous`: both are built alike.
    `inner`: neither has the first or last compute node of the model; automatic choices take only such boundaries.
    """

    first: str
    second: str
    differential: float
    homogeneous: bool
    inner: bool


class Edge(NamedTuple):
    """A tensor on its way to one reader, a node; without a reader to all that have no quantizer of their own."""

    tensor: str
    reader: str = ""

    def __str__(self) -> str:
        return f"{self.tensor!r} in front of {self.reader!r}" if self.reader else repr(self.tensor)


@dataclass
class Plan:
    """All decisions. Passes fill it in order; the emitted file, the simulations and the report are made from it.

    `groups` maps each quantized tensor to the tensor whose quantizer it shares (often itself). `specs` and `quantizers`
    are keyed by the edge that they stand on: that tensor without a reader, or for a second, narrower quantizer the
    first of the edges to compute nodes that share it. `reads` maps every edge to a compute node to the one whose
    quantizer it has. `unrounded` are those of these tensors that float nodes read before they are rounded. `weights`
    and `biases` are keyed by node name; biases are float32 [C], rounded to int32 only on emission. `capacities` (in
    bits) and `losses` (squared error after training relative to the squared values) are by unit. `untouched` names the
    places where rotating or equalising channels was tried and made an error larger. `regions` lists the names of the
    units that are trained together, in order; empty means every unit by itself. `recipe` is a hash of the settings that
    decided; `target` says which target they decided for, `backend` what writes its files, and `bias` the type of biases
    there: simulations round as the file does.
    """

    nodes: dict[str, NodePlan] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)
    reads: dict[Edge, Edge] = field(default_factory=dict)
    unrounded: list[str] = field(default_factory=list)
    specs: dict[Edge, ActivationSpec] = field(default_factory=dict)
    quantizers: dict[Edge, Quantizer] = field(default_factory=dict)
    weights: dict[str, WeightQuantizer] = field(default_factory=dict)
    biases: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    capacities: dict[str, float] = field(default_factory=dict)
    boundaries: list[Boundary] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)
    regions: list[tuple[str, ...]] = field(default_factory=list)
    recipe: str = ""
    target: str = "ort-cpu"
    backend: str = "ort-cpu"
    bias: Bias = "int32"

    def unplaced(self) -> Plan:
        """Return the plan as it was before placement: without nodes, quantizers and numbers."""
        return replace(
            self, nodes={}, groups={}, reads={}, unrounded=[], specs={}, quantizers={}, weights={}, biases={}
        )

    def form(self, node: str) -> Form:
        """Return the form of a node; a node that no pass has placed is float."""
        placed = self.nodes.get(node)
        return placed.form if placed else Form.FLOAT

    def key(self, tensor: str, reader: str = "") -> Edge:
        """Return the key of the tensor's own quantizer, or of the one that a compute node sees which reads it."""
        if not reader:
            return Edge(self.groups[tensor])
        if (edge := Edge(tensor, reader)) not in self.reads:
            remedy = "let place-quantizers run behind the pass that made it a compute node"
            raise QCompileError(f"no quantizer was placed for {edge}", remedy=remedy)
        return self.reads[edge]

    def scale_in_front(self, node: str, tensor: str) -> float:
        """Return the scale of the codes of `tensor` that a compute node reads; infinite where it reads floats.

        The int32 bias of the node has to fit beside it.
        """
        return self.quantizers[self.key(tensor, node)].scale if self.nodes[node].reads_codes else math.inf

    def stands_on(self, key: Edge) -> str:
        """Return the tensor whose values the quantizer `key` was made for."""
        return self.groups[key.tensor]

    def precision(self) -> str:
        """Return the bits of the layers as w4a4, of a mixture how many have which; ends at 8 are usual."""
        layers = [node for node in self.nodes.values() if node.weight_bits]
        inner = [node for node in layers if node.reason != ENDS or node.weight_bits < 8] or layers
        counts = Counter(f"w{node.weight_bits}a{node.input_bits}" for node in inner).most_common()
        if len(counts) > 1:
            return f"mixed ({', '.join(f'{count} {bits}' for bits, count in counts)})"
        return counts[0][0] if counts else "float"

    def stacked(self) -> dict[str, list[Edge]]:
        """Map each tensor that others share the quantizer of to the keys of all that stand on it, its own first."""
        found: dict[str, list[Edge]] = {root: [] for root in self.groups.values()}
        for key in sorted(self.specs, key=lambda key: bool(key.reader)):
            found[self.stands_on(key)].append(key)
        return found

    def trained_together(self) -> list[tuple[str, ...]]:
        """Return the regions, each a tuple of names of units; every unit by itself where none are chosen."""
        return self.regions or [(unit.name,) for unit in self.units]


def region_name(units: Iterable[str]) -> str:
    """Return the name of the region that these units make."""
    return " + ".join(units)
