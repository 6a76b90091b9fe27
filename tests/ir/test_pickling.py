"""Graphs that went through pickle are the graphs that they were."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from networks import NETWORKS, compiled, network
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompile import QModel
from qcompile.ir import Constant, Graph, to_model
from qcompile.ir.load import to_graph

BRANCHES = """g (float[N,4] x, bool c) => (float[N,4] y) {
  a = Relu(x)
  [choice] y = If (c) <then_branch = t () => (float[N,4] p) { p = Neg(a) },
                       else_branch = e () => (float[N,4] q) { q = Abs(a) }>
}"""


def through_pickle(graph: Graph) -> Graph:
    found: Graph = pickle.loads(pickle.dumps(graph))
    return found


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_model_is_the_same_to_the_byte(name: str) -> None:
    graph = compiled(NETWORKS[name]).graph
    assert to_model(through_pickle(graph)).SerializeToString() == to_model(graph).SerializeToString()


def test_branches_with_what_they_capture_go_along(as_qmodel: Callable[[ModelProto], QModel]) -> None:
    graph = as_qmodel(network(BRANCHES)).graph
    assert to_model(through_pickle(graph)).SerializeToString() == to_model(graph).SerializeToString()


def test_a_long_chain_does_not_nest() -> None:
    """Nodes refer to tensors, and these to the next nodes: one by one, pickle would run out of stack."""
    nodes = [helper.make_node("Relu", [f"t{k}"], [f"t{k + 1}"], f"n{k}") for k in range(3000)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", "t3000")]
    graph = to_graph(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])))
    assert [node.name for node in through_pickle(graph).nodes] == [node.name for node in nodes]


def test_types_names_and_large_weights_stay() -> None:
    weight = np.arange(300_000, dtype=np.float32)
    source = network("g (float[N,300000] x) => (float[N,300000] y) { [add] s = Add(x, w)  [relu] y = Relu(s) }")
    source.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    found = through_pickle(to_graph(onnx.shape_inference.infer_shapes(source)))
    tensors = found.tensors()
    assert isinstance(tensors["w"], Constant)
    np.testing.assert_array_equal(np.asarray(tensors["w"].values), weight)
    assert tensors["s"].shape == ["N", 300000] and tensors["s"].dtype == np.float32
