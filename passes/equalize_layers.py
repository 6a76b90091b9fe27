"""Cross-layer equalization: give the channels between two layers ranges that suit one scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qcompile.ir import Graph, Node, only_consumer, topological
from qcompile.ir.affine import Layer, open_layer
from qcompile.qmodel import QModel

HOMOGENEOUS = {"Relu", "LeakyRelu"}  # f(s x) = s f(x) for s > 0; a Clip is not
CONVOLUTIONS, MATRICES = {"Conv", "ConvTranspose"}, {"Gemm", "MatMul"}
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

    References: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section
    4.1.
    """

    name: ClassVar[str] = "equalize-layers"
    requires: ClassVar[tuple[str, ...]] = ("fold-batch-norm",)

    def run(self, model: QModel) -> int:
        """Equalize; return the number of pairs whose weights changed."""
        graph = model.graph
        layers: dict[str, Layer] = {}
        pairs = list(_pairs(graph, layers))
        changed: set[tuple[str, str]] = set()
        for _ in range(ROUNDS):
            moved = [pair for pair in pairs if _equalize(layers[pair[0]], layers[pair[1]])]
            changed.update(moved)
            if not moved:
                break
        touched = [layers[name] for name in sorted({name for pair in changed for name in pair})]
        if any(layer.stored() is None for layer in touched):
            model.journal.note(self.name, "nothing equalized", reason="the scaled weights overflow float16")
            return 0
        for layer in touched:
            layer.write(graph)
        if pairs:
            model.journal.note(self.name, "layers equalized", pairs=len(pairs), changed=len(changed))
        return len(changed)


def _pairs(graph: Graph, layers: dict[str, Layer]) -> Iterator[tuple[str, str]]:
    """Yield the names of consecutive layers between which every channel may be rescaled, and open them in `layers`."""
    for node in topological(graph):
        second = _next_layer(graph, node)
        if second is None:
            continue
        for item in (node, second):
            if item.name not in layers and (opened := open_layer(item)):
                layers[item.name] = opened
        if node.name in layers and second.name in layers and layers[node.name].outputs == layers[second.name].inputs:
            yield node.name, second.name


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


def _equalize(first: Layer, second: Layer) -> bool:
    """Rescale the channels between two layers; False where they are equal already."""
    r1 = np.abs(first.weight).max((2, 3)).reshape(-1)
    r2 = np.abs(second.weight).max((1, 3)).reshape(-1)
    scale = np.ones_like(r1)
    alive = (r1 > DEAD * r1.max(initial=0)) & (r2 > DEAD * r2.max(initial=0))
    scale[alive] = np.sqrt(r1[alive] / r2[alive])
    if np.abs(np.log(scale)).max(initial=0) < SETTLED:
        return False
    first.scale_outputs(1 / scale)
    second.scale_inputs(scale)
    return True
