"""Cross-layer equalization: give the channels between two layers ranges that suit one scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import networkx as nx
import numpy as np

from qcompile.calibration.ranges import BY_BITS, Ranges
from qcompile.ir import Graph, Node, only_consumer, topological
from qcompile.ir.layers import Kept, Rescaled, open_layer
from qcompile.ir.protos import CONVOLUTIONS, MATRICES
from qcompile.qmodel import QModel
from qcompile.simulation.trial import Place, change_where_better

HOMOGENEOUS = {"Relu", "LeakyRelu"}  # f(s x) = s f(x) for s > 0; a Clip is not
PARTNERS = {op: ops for ops in (CONVOLUTIONS, MATRICES) for op in ops}  # channels stand in the same dimension
ROUNDS = 50  # chains converge geometrically; EfficientNet needs about twenty
SETTLED = 1e-2  # largest |log scale| that is no longer worth a change
DEAD = 1e-6  # of the largest channel: below it a channel carries nothing, and scaling it up would blow up its bias


@dataclass(frozen=True)
class EqualizeLayers:
    """Rescale the channels between consecutive layers so that the weights on both sides have equal ranges.

    For channel i between two layers with largest weights r1_i (of the output channel) and r2_i (of the input channel),
    the first layer is divided and the second multiplied by s_i = sqrt(r1_i / r2_i). The function stays the same where
    only a positively homogeneous activation stands between. Pairs share layers, so this repeats until it settles.

    Equal weights are no end in themselves: the values between get ranges that may differ more, and have one scale. So,
    where there are samples and a placement, every chain is tried with and without (`qcompile.simulation.trial`), and
    put back where the output of its last layer errs more. `untouched`: chains that a plan says to leave alone.

    References: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section
    4.1.
    """

    name: ClassVar[str] = "equalize-layers"
    requires: ClassVar[tuple[str, ...]] = ("fold-batch-norm",)

    untouched: frozenset[str] | None = None
    ranges: Ranges = BY_BITS

    def run(self, model: QModel) -> int:
        """Equalize; return the number of pairs whose weights changed."""
        pairs = list(_pairs(model.graph))
        places = [_place(model, chain) for chain in _chains(pairs)]
        changed = change_where_better(model, self.name, places, self.untouched, self.ranges)
        if pairs:
            model.journal.note(self.name, "layers equalized", pairs=len(pairs), changed=changed)
        return changed


def _pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Yield consecutive layers between which every channel may be rescaled, in topological order."""
    for node in topological(graph):
        second = _next_layer(graph, node)
        if second is not None:
            yield node, second


def _chains(pairs: list[tuple[Node, Node]]) -> Iterator[list[tuple[Node, Node]]]:
    """Yield the pairs that share layers together: only one chain's weights are open at a time."""
    linked: nx.Graph[str] = nx.Graph()
    linked.add_edges_from((first.name, second.name) for first, second in pairs)
    for names in sorted(nx.connected_components(linked), key=min):
        yield [pair for pair in pairs if pair[0].name in names]


def _place(model: QModel, chain: list[tuple[Node, Node]]) -> Place:
    """Return a chain as a place: its layers, and the activations between them."""
    layers = {node.name for pair in chain for node in pair}
    between = {node.name for first, second in chain for node in _between(model.graph, first, second)}
    return Place(chain[0][0].name, frozenset(layers | between), partial(_equalize_chain, model, chain))


def _between(graph: Graph, first: Node, second: Node) -> Iterator[Node]:
    """Yield the activations between two consecutive layers."""
    node = only_consumer(graph, first.outputs[0])
    while node is not None and node is not second:
        yield node
        node = only_consumer(graph, node.outputs[0])


def _equalize_chain(model: QModel, chain: list[tuple[Node, Node]]) -> tuple[int, list[Kept]]:
    """Equalize the layers of one chain; return the number of pairs whose weights changed, and what they were."""
    layers = {
        node.name: Rescaled.of(opened)
        for node in {id(node): node for pair in chain for node in pair}.values()
        if (opened := open_layer(node))
    }
    names = [(first.name, second.name) for first, second in chain if first.name in layers and second.name in layers]
    pairs = [pair for pair in names if layers[pair[0]].output_factors.size == layers[pair[1]].input_factors.size]
    changed: set[tuple[str, str]] = set()
    for _ in range(ROUNDS):
        moved = [pair for pair in pairs if _equalize(layers[pair[0]], layers[pair[1]])]
        changed.update(moved)
        if not moved:
            break
    touched = [layers[name] for name in sorted({name for pair in changed for name in pair})]
    kept = [Kept.of(layer.node) for layer in touched]
    if all(layer.opened().write(model.graph) for layer in touched):
        return len(changed), kept
    for item in kept:
        item.restore()
    reason = "the scaled weights overflow"
    model.journal.note(EqualizeLayers.name, "not equalized", node=chain[0][0].name, reason=reason)
    return 0, []


def _next_layer(graph: Graph, node: Node) -> Node | None:
    """Return the layer that reads `node` and nothing else, with at most homogeneous activations between."""
    result = node.outputs[0]
    behind = only_consumer(graph, result) if node.op in PARTNERS else None
    while behind is not None and behind.op in HOMOGENEOUS:
        result = behind.outputs[0]
        behind = only_consumer(graph, result)
    if behind is None or behind.op not in PARTNERS[node.op] or behind.attrs.get("transA", 0):
        return None
    return behind if behind.inputs[0] is result else None  # Gemm could also read it as its bias


def _equalize(first: Rescaled, second: Rescaled) -> bool:
    """Rescale the channels between two layers; False where they are equal already."""
    r1, r2 = first.output_peaks(), second.input_peaks()
    scale = np.ones_like(r1)
    alive = (r1 > DEAD * r1.max(initial=0)) & (r2 > DEAD * r2.max(initial=0))
    alive &= np.minimum(r1, r2) >= np.finfo(np.float32).tiny  # below, weights have lost bits that scaling would show
    scale[alive] = np.sqrt(r1[alive] / r2[alive])
    if np.abs(np.log(scale)).max(initial=0) < SETTLED:
        return False
    first.output_factors = first.output_factors / scale
    second.input_factors = second.input_factors * scale
    return True
