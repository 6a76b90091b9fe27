"""The part of a graph in front of some tensors: what they depend on and nothing else, with the same values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import CLASSIFIER, SQUEEZE_EXCITE, network, samples

from qcompile.ir import part_before, to_model
from qcompile.ir.prepare import prepare
from qcompile.runtime.session import Session

BRANCH = """net (float[N,4] x, float[4,4] W, float[4,4] V) => (float[N,4] y, float[N,4] z) <bool go = {1}> {
  [first] a = MatMul(x, W)  [second] b = MatMul(x, V)  [unused] z = Neg(b)
  [choose] y = If(go) <then_branch = t () => (float[N,4] c) { c = Relu(a) }, else_branch = e () => (float[N,4] d)
    { d = Abs(a) }>
}"""
PARTS = {  # network, tensors, the nodes in front of them
    "two branches": (SQUEEZE_EXCITE, ["c", "d"], "stem relu pool squeeze"),
    "all": (CLASSIFIER, ["logits"], "conv1 relu1 conv2 relu2 pool flatten head"),
    "an input alone": (CLASSIFIER, ["image"], ""),
    "what a subgraph reads": (BRANCH, ["y"], "first choose"),
}


@pytest.mark.parametrize("text, names, nodes", PARTS.values(), ids=PARTS)
def test_a_part_is_what_tensors_depend_on(text: str, names: list[str], nodes: str) -> None:
    source = network(text)
    graph = prepare(source, 1, 18)
    part = part_before(graph, names)
    assert [node.name for node in part.nodes] == nodes.split() and part.outputs == []
    assert len(graph.nodes) == len(source.graph.node) and graph.outputs
    model = to_model(part)
    read = {name for node in model.graph.node for name in node.input}
    assert {item.name for item in model.graph.initializer} <= read
    for item in (model, whole := to_model(graph)):
        given = {port.name for port in (*item.graph.input, *item.graph.output)}
        item.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    feeds = samples(source, 2)
    for name in sorted({item.name for item in model.graph.output}):
        found, expected = (Session(item, threads=1).run(feeds, [name])[name] for item in (model, whole))
        np.testing.assert_array_equal(found, expected)
