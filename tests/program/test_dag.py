"""What belongs to the activation DAG, where pieces of it begin and end, and the blocks in it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from qcompile.ir import Graph, Node, Variable
from qcompile.ir.load import to_graph
from qcompile.program.blocks import find_blocks
from qcompile.program.dag import ActivationDag, activation_dag


def dag_of(body: str, outputs: str = "y") -> ActivationDag:
    """The DAG of a graph with input x, weight w and constant c; the nodes are written in ONNX text."""
    text = f"""<ir_version: 8, opset_import: ["": 18]>
    net (float[1,2,4,4] x) => ({", ".join(f"float[N,C,H,W] {name}" for name in outputs.split())})
    <float[2,2,1,1] w, float[1] c = {{1.0}}, int64[1] i = {{0}}> {{ {body} }}"""
    model = parser.parse_model(text)
    model.graph.initializer[0].raw_data = np.zeros((2, 2, 1, 1), np.float32).tobytes()
    model.graph.initializer[0].data_type = 1
    return activation_dag(to_graph(model))


def names(dag: ActivationDag, indices: set[int] | frozenset[int] | list[int]) -> set[str]:
    return {dag.nodes[index].name for index in indices}


def test_weights_and_constants_are_no_part() -> None:
    dag = dag_of("[one] k = Identity(c) [conv] a = Conv(x, w) [add] y = Add(a, k)")
    assert [node.name for node in dag.nodes] == ["conv", "add"]
    assert dag.reads == (("x",), ("a",)) and dag.makes == (("a",), ("y",))


def test_shape_arithmetic_is_no_part() -> None:
    dag = dag_of("[conv] a = Conv(x, w) [shape] s = Shape(a) [pick] p = Gather(s, i) [move] y = Reshape(a, p)")
    assert [node.name for node in dag.nodes] == ["conv", "move"]
    assert dag.reads[1] == ("a",)


def test_what_needs_the_shape_of_an_inner_tensor_comes_behind_it() -> None:
    dag = dag_of(
        """[conv] a = Conv(x, w) [shape] s = Shape(a) [pick] p = Gather(s, i) [size] q = Shape(x)
        [both] r = Concat<axis = 0>(p, q) [grow] b = Expand(x, r) [fill] f = ConstantOfShape(s) [add] y = Add(b, f)"""
    )
    assert [node.name for node in dag.nodes] == ["conv", "grow", "add"]
    assert dag.reads == (("x",), ("x", "a"), ("b", "a"))
    assert dag.readers["a"] == (1, 2) and dag.before[1] == {0} and dag.behind[0] == {1, 2}
    assert dag.boundary({0}) == (("x",), ("a",))


def test_a_compute_node_on_constants_is_a_part() -> None:
    dag = dag_of("[random] r = RandomNormal<shape = [1, 2, 4, 4]>() [conv] y = Conv(r, w)")
    assert [node.name for node in dag.nodes] == ["conv"]
    assert dag.before == [set()]


def test_the_order_is_topological_also_for_what_subgraphs_capture() -> None:
    x, made, inner, chosen = (Variable(name, np.float32, None) for name in ("x", "made", "inner", "chosen"))
    branch = Graph([Node("Relu", "captures", {}, [made], [inner])], outputs=[inner])
    control = Node("If", "if", {"then_branch": branch, "else_branch": branch}, [x], [chosen])
    dag = activation_dag(Graph([control, Node("Relu", "relu", {}, [x], [made])], inputs=[x], outputs=[chosen]))
    assert [node.name for node in dag.nodes] == ["relu", "if"]
    assert dag.reads[1] == ("x", "made")
    assert dag.opaque == {1}


def test_first_and_last_compute_nodes() -> None:
    dag = dag_of(
        """[relu] r = Relu(x) [a] a = Conv(r, w) [b] b = Conv(a, w) [c] c1 = Conv(b, w) [d] d = Conv(r, w)
        [sum] s = Add(c1, d) [end] y = Relu(s)"""
    )
    assert names(dag, dag.first_compute) == {"a", "d"}
    assert names(dag, dag.last_compute) == {"c", "d"}


def test_boundary_counts_graph_outputs_that_are_read_inside() -> None:
    dag = dag_of("[a] a = Conv(x, w) [b] b = Relu(a) [add] s = Add(b, x) [end] y = Relu(s)", outputs="y b")
    assert dag.boundary([0, 1, 2]) == (("x",), ("b", "s"))
    assert dag.boundary({3, 2}) == (("b", "x"), ("y",))


RESIDUAL = "[a] a = Conv(x0, w) [b] b = Conv(a, w) [add] s = Add(b, x0)"


def test_a_block_begins_behind_its_entry() -> None:
    dag = dag_of(f"[stem] x0 = Conv(x, w) {RESIDUAL} [end] y = Conv(s, w)")
    assert [names(dag, block) for block in find_blocks(dag, 12)] == [{"a", "b", "add"}]


@pytest.mark.parametrize(
    ("limit", "found"), [(3, [{"a", "b", "add", "c", "outer"}]), (2, [{"a", "b", "add"}]), (1, [])]
)
def test_a_block_that_is_too_large_falls_apart(limit: int, found: list[set[str]]) -> None:
    dag = dag_of(f"[stem] x0 = Conv(x, w) {RESIDUAL} [c] d = Conv(s, w) [outer] y = Add(d, x0)")
    assert [names(dag, block) for block in find_blocks(dag, limit)] == found


def test_an_inner_block_of_one_that_is_too_large() -> None:
    dag = dag_of(f"[p] p = Conv(x, w) [q] x0 = Conv(p, w) {RESIDUAL} [r] r = Conv(s, w) [outer] y = Add(r, p)")
    assert [names(dag, block) for block in find_blocks(dag, 12)] == [{"q", "a", "b", "add", "r", "outer"}]
    assert [names(dag, block) for block in find_blocks(dag, 2)] == [{"a", "b", "add"}]


def test_a_branch_that_leaves_stays_outside() -> None:
    dag = dag_of(f"[stem] x0 = Conv(x, w) {RESIDUAL} [aux] z = Conv(a, w) [end] y = Relu(s)", outputs="y z")
    assert [names(dag, block) for block in find_blocks(dag, 12)] == [{"b", "add"}]


def test_split_belongs_to_the_block_that_it_opens() -> None:
    dag = dag_of(
        "[stem] a = Conv(x, w) [split] l, r = Split<num_outputs = 2, axis = 1>(a)"
        "[relu] q = Relu(l) [cat] y = Concat<axis = 1>(q, r)"
    )
    assert [names(dag, block) for block in find_blocks(dag, 12)] == [{"split", "relu", "cat"}]


def test_a_recurrent_node_is_in_no_block() -> None:
    dag = dag_of("[stem] a = Conv(x, w) [loop] h = GRU(a, w, w) [b] b = Conv(a, w) [add] y = Add(h, b)")
    assert dag.opaque == {1}
    assert [names(dag, block) for block in find_blocks(dag, 12)] == []
