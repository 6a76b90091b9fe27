"""Rotate the channels of linear tensors, so that all of them have ranges that suit one scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from qcompile.calibration.ranges import BY_BITS, Ranges
from qcompile.ir import Graph, Node, Tensor, consumers, is_inner, is_output, producer
from qcompile.ir.layers import Kept, Layer, open_layer
from qcompile.ir.protos import LAYERS, MATRICES
from qcompile.qmodel import QModel
from qcompile.simulation.trial import Place, change_where_better

SUMS = {"Add", "Sub"}
FEWEST = 2  # channels that are rotated


@dataclass(frozen=True)
class RotateChannels:
    """Rotate the channels of every linear stream: layers, the tensors behind them, and sums of these.

    The layers that make a stream give Q y in the place of y, those that read it take Q out again; Q is orthogonal, so
    the function stays the same. Each channel is then a mixture of all: its weights and values are nearly Gaussian, and
    no few large ones set the scale for the others. Streams are the linear bottlenecks of MobileNets and EfficientNets,
    over all blocks of a stage, and whatever stands between two layers without an activation.

    Where there are samples and a placement, every stream is tried with and without (`qcompile.simulation.trial`), and
    put back where the outputs of its readers err more. `untouched`: streams that a plan says to leave alone.

    References: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024, for transformers.
    """

    name: ClassVar[str] = "rotate-channels"
    requires: ClassVar[tuple[str, ...]] = ("fold-batch-norm",)

    untouched: frozenset[str] | None = None
    ranges: Ranges = BY_BITS

    def run(self, model: QModel) -> int:
        """Rotate; return the number of streams."""
        if any(model.journal.by(self.name)):
            return 0  # it has run: a second rotation would undo the first
        rotated = change_where_better(model, self.name, list(_places(model)), self.untouched, self.ranges)
        if rotated:
            model.journal.note(self.name, "streams rotated", streams=rotated)
        return rotated


@dataclass(frozen=True)
class _Stream:
    """The layers that make the tensors of a stream, and those that read them; a layer that does both is in both."""

    makers: list[Layer]
    readers: list[Layer]


def _places(model: QModel) -> Iterator[Place]:
    """Yield the streams as places, those that share a layer as one."""
    streams: dict[str, list[Tensor]] = {}
    shared: nx.Graph[tuple[str, str]] = nx.Graph()
    for tensors in _linked(model.graph):
        if (stream := _open_stream(model.graph, tensors)) is not None:
            streams[tensors[0].name] = tensors
            ends = [*stream.makers, *stream.readers]
            shared.add_edges_from((("stream", tensors[0].name), ("layer", layer.node.name)) for layer in ends)
    for linked in sorted(map(sorted, nx.connected_components(shared))):
        names = [name for kind, name in linked if kind == "stream"]
        together = [streams[name] for name in names]
        yield Place(names[0], _stretch(together), partial(_rotate_all, model, together))


def _stretch(streams: Sequence[Sequence[Tensor]]) -> frozenset[str]:
    """Return the nodes that make or read the tensors of streams."""
    tensors = [tensor for stream in streams for tensor in stream]
    made_by = {node.name for tensor in tensors if (node := producer(tensor)) is not None}
    return frozenset(made_by | {node.name for tensor in tensors for node in consumers(tensor)})


def _rotate_all(model: QModel, streams: Sequence[Sequence[Tensor]]) -> tuple[int, list[Kept]]:
    """Rotate streams; return how many were rotated, and what their layers were."""
    names = _stretch(streams)
    kept = [Kept.of(node) for node in model.graph.nodes if node.name in names and node.op in LAYERS]
    opened = (_open_stream(model.graph, tensors) for tensors in streams)
    return sum(stream is not None and _rotate(model, stream) for stream in opened), kept


def rotation(channels: int) -> NDArray[np.float64]:
    """Return the matrix [channels, channels] of the DCT-IV: orthogonal, and every channel gets a share of all."""
    half = np.arange(channels) + 0.5
    matrix: NDArray[np.float64] = np.sqrt(2 / channels) * np.cos(np.pi / channels * np.outer(half, half))
    return matrix


def _linked(graph: Graph) -> Iterator[list[Tensor]]:
    """Yield the results of layers, those that sums connect together."""
    tensors: dict[str, Tensor] = graph.tensors()
    linked: nx.Graph[str] = nx.Graph()
    for node in graph.nodes:
        if node.op in LAYERS:
            linked.add_node(node.outputs[0].name)
        elif node.op in SUMS:
            linked.add_edges_from((tensor.name, node.outputs[0].name) for tensor in node.inputs)
    for names in sorted(nx.connected_components(linked), key=min):
        yield [tensors[name] for name in sorted(names)]


def _open_stream(graph: Graph, tensors: Sequence[Tensor]) -> _Stream | None:
    """Return the layers around `tensors`, opened; None where channels mean something to anybody else."""
    made_by = [node for tensor in tensors if (node := producer(tensor)) is not None]
    read_by = [node for tensor in tensors for node in consumers(tensor)]
    ends = {node.name: node for node in (*made_by, *read_by) if node.op not in SUMS}
    if len(made_by) < len(tensors) or any(is_output(graph, tensor) for tensor in tensors):
        return None
    if any(map(is_inner, read_by)) or any(node.op not in LAYERS for node in ends.values()):
        return None
    opened = {name: layer for name, node in ends.items() if (layer := open_layer(node)) and _is_whole(layer)}
    if len(opened) < len(ends) or len({_place_of_channels(layer.node) for layer in opened.values()}) != 1:
        return None
    makers, readers = ([opened[node.name] for node in nodes if node.name in opened] for nodes in (made_by, read_by))
    sizes = {layer.outputs for layer in makers} | {layer.inputs for layer in readers}
    return _Stream(makers, readers) if readers and len(sizes) == 1 and min(sizes) >= FEWEST else None


def _is_whole(layer: Layer) -> bool:
    """Say whether every output is made of every input, without groups or transposed data, by a weight of its own."""
    shared = len(layer.node.inputs[1].outputs) > 1  # copies for each reader would make the file larger
    return layer.weight.shape[0] == 1 and not layer.node.attrs.get("transA", 0) and not shared


def _place_of_channels(node: Node) -> int:
    """Return the dimension of the channels from the end; only where it is the same are sums by channel."""
    return -1 if node.op in MATRICES else 1 - len(node.inputs[1].shape)


def _rotate(model: QModel, stream: _Stream) -> bool:
    """Rotate one stream; False, and nothing changed, where its weights overflow."""
    turn = rotation(stream.makers[0].outputs)
    for layer in stream.makers:
        layer.turn_outputs(turn)
    for layer in stream.readers:
        layer.turn_inputs(turn)
    layers = {layer.node.name: layer for layer in (*stream.makers, *stream.readers)}
    if any(layer.stored() is None for layer in layers.values()):
        reason = "the rotated weights overflow"
        model.journal.note(RotateChannels.name, "not rotated", node=next(iter(layers)), reason=reason)
        return False
    for layer in layers.values():
        layer.write(model.graph)
    return True
