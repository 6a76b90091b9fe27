"""A few steps as a model of their own: cut anywhere, the pieces compute what the whole does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from networks import CALIBRATE, ELEMENTWISE, FLOAT_ISLAND, NETWORKS, RESIDUAL, Arrays, compiled, samples

from qcompile import QModel
from qcompile.execution.fragment import boundary, fragment
from qcompile.execution.twins import float_steps
from qcompile.ir import Constant
from qcompile.program.lower import Step, Value, lower
from qcompile.runtime.session import Session
from qcompile.simulation import simulate


def inputs_of(model: QModel, steps: tuple[Step, ...]) -> list[Value]:
    """Return what steps read from outside, without constants."""
    tensors = model.graph.tensors()
    return [value for value in boundary(steps)[0] if not isinstance(tensors.get(value.name), Constant)]


def test_boundary() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    steps = lower(model.graph, model.plan).steps
    block = tuple(step for step in steps if step.node is not None and step.node.name in ("first", "second", "add"))
    read, made = boundary(block)
    assert [value.name for value in read] == ["trunk_q4", "trunk_q8"]
    assert made == {"c_q4", "d_q8", "t_q8"}
    assert [value.name for value in boundary(steps)[0]] == ["image"]


def test_types_at_the_border() -> None:
    """Codes enter and leave as uint8, tensors of the graph with their own type; nothing is packed or quantized."""
    model = compiled(FLOAT_ISLAND, CALIBRATE, w=4, a=4)
    steps = lower(model.graph, model.plan).steps
    at = next(k for k, step in enumerate(steps) if step.node is not None and step.node.name == "tanh")
    piece = fragment(model.graph, model.plan, steps[at : at + 3], inputs_of(model, steps[at : at + 3]), ["b_q4", "b"])
    assert [(item.name, item.type.tensor_type.elem_type) for item in piece.graph.input] == [("a", 1)]
    found = Session(piece, fuse_qdq=False).run({"a": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2)})
    assert found["b_q4"].dtype == np.uint8 and found["b"].dtype == np.float32
    behind = fragment(model.graph, model.plan, steps[at + 2 : at + 4], [steps[at + 2].inputs[0]], ["c"])
    assert behind.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in behind.graph.initializer)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"elementwise"}))
def test_pieces_compute_what_the_whole_does(name: str) -> None:
    check_cuts(compiled(NETWORKS[name], CALIBRATE, w=4, a=4))


def test_pieces_with_a_constant_operand() -> None:
    check_cuts(compiled(ELEMENTWISE, CALIBRATE, w=4, a=4))


def check_cuts(model: QModel) -> None:
    """Run a program in two pieces, cut at every place; the values are those of the whole."""
    program, feeds = lower(model.graph, model.plan), samples(model.source, 2, seed=3)
    whole = Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False, threads=1).run(feeds)
    for cut in range(1, len(program.steps)):
        known: Arrays = dict(feeds)
        for steps in (program.steps[:cut], program.steps[cut:]):
            known |= run_piece(model, steps, known)
        for output, expected in whole.items():
            np.testing.assert_array_equal(known[output], expected)  # the same operators on the same values, unfused


def run_piece(model: QModel, steps: tuple[Step, ...], known: Arrays) -> Arrays:
    inputs, made = inputs_of(model, steps), boundary(steps)[1]
    piece = fragment(model.graph, model.plan, steps, inputs, sorted(made))
    session = Session(piece, level="off", fuse_qdq=False, threads=1)
    return session.run({value.name: known[value.name] for value in inputs})


def test_steps_of_the_float_graph_run_as_they_stand() -> None:
    """What the float side of a layer-by-layer pass runs: nodes as float steps, no quantizer anywhere."""
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    steps = float_steps(model.graph)
    feeds = samples(model.source, 2)
    piece = fragment(model.graph, model.plan, steps, inputs_of(model, steps), ["y", "trunk"])
    found = Session(piece, level="off", threads=1).run(feeds)
    expected = Session(model.source, level="off", threads=1).run(feeds)
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-5, atol=1e-5)
    assert "QuantizeLinear" not in {node.op_type for node in piece.graph.node}


MIXER = """n (float[N,3,4,4] x, float[8,3,1,1] A, float[8] G, float[16,12] B, float[12,16] C, float[8,4] D)
  => (float[N,T,4] y) <int64[3] tokens = {0,8,-1}> {
    [stem] a = Conv(x, A)  [fold] b = Reshape(a, tokens)  [turn] c = Transpose<perm = [0,2,1]>(b)
    [norm] d = LayerNormalization(c, G)  [across] e = Transpose<perm = [0,2,1]>(d)  [one] f = MatMul(e, B)
    [relu] h = Relu(f)  [two] i = MatMul(h, C)  [back] j = Transpose<perm = [0,2,1]>(i)  [add] k = Add(c, j)
    [norm2] l = LayerNormalization(k, G)  [last] y = MatMul(l, D)
}"""


def test_a_transpose_is_not_moved_past_what_others_read() -> None:
    model = compiled(MIXER, CALIBRATE, w=8, a=8)
    steps, feeds = lower(model.graph, model.plan).steps, samples(model.source, 2)
    piece = fragment(model.graph, model.plan, steps, inputs_of(model, steps), ["y"])
    found, expected = (Session(piece, level=level, fuse_qdq=False, threads=1).run(feeds) for level in ("all", "off"))
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-4, atol=1e-4)
