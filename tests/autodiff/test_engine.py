"""The sweep: what it visits, adds up and leaves out, and what it says where it cannot."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from autodiff.cases import Array
from onnx.reference import ReferenceEvaluator

from qcompile.autodiff import RULES, Node, NoGradientRule, Tape, differentiate, gradients, record, vjp
from qcompile.errors import InputError
from qcompile.runtime.session import Session


def model(
    body: str, inputs: str = "float[2,3] x, float[2,3] w", opset: int = 18, outputs: str = "float loss"
) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )


def run(made: onnx.ModelProto, **feeds: Array) -> dict[str, Array]:
    return Session(made, threads=1).run({name: np.asarray(value, np.float32) for name, value in feeds.items()})


def kinds(made: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in made.graph.node)


X, W = np.arange(6.0).reshape(2, 3) - 2, np.ones((2, 3)) * 3
LOSS = "loss = ReduceSum<keepdims=0>(y)"


def test_contributions_are_added() -> None:
    made = differentiate(model(f"a = Mul(x, x) b = Mul(a, w) c = Add(a, x) y = Add(b, c) {LOSS}"), "loss", ["x", "w"])
    found = run(made.model, x=X, w=W)
    np.testing.assert_allclose(found[made.gradients["x"]], 2 * X * W + 2 * X + 1)
    np.testing.assert_allclose(found[made.gradients["w"]], X * X)


def test_forward_outputs_stay_and_gradients_follow() -> None:
    made = differentiate(model(f"y = Mul(x, w) {LOSS}"), "loss", ["w"])
    assert [item.name for item in made.model.graph.output] == ["loss", "w_gradient"]
    onnx.checker.check_model(made.model, full_check=True)
    assert [dim.dim_value for dim in made.model.graph.output[1].type.tensor_type.shape.dim] == [2, 3]


def test_nobody_pays_for_gradients_that_nobody_asked_for() -> None:
    body = f"a = Exp(x) b = Tanh(w) y = MatMul(a, b) {LOSS}"
    forward = kinds(model(body))
    made = kinds(differentiate(model(body, "float[2,3] x, float[3,2] w"), "loss", ["w"]).model)
    assert made["MatMul"] + made["Gemm"] == forward["MatMul"] + 1
    assert made["Exp"] == 1


def test_nodes_beside_the_way_need_no_rule() -> None:
    body = f"mask = Floor(x) y = Mul(mask, w) unread = Hardmax(y) {LOSS}"
    made = differentiate(model(body), "loss", ["w"])
    np.testing.assert_array_equal(run(made.model, x=X, w=W)["w_gradient"], np.floor(X))


def test_integers_end_the_way() -> None:
    body = f"k = Cast<to=7>(x) f = Cast<to=1>(k) y = Mul(f, w) {LOSS}"
    made = differentiate(model(body), "loss", ["x"])
    np.testing.assert_array_equal(run(made.model, x=X, w=W)["x_gradient"], np.zeros((2, 3)))


def test_a_missing_rule_names_node_and_operator() -> None:
    with pytest.raises(NoGradientRule, match=r"Hardmax cannot be differentiated: .*node 'odd', which makes 'y'"):
        differentiate(model(f"[odd] y = Hardmax(x) {LOSS}"), "loss", ["x"])


def test_a_subgraph_that_reads_a_trainable_tensor_has_no_rule() -> None:
    body = """then = Constant<value = bool {1}>()
        y = If(then) <then_branch = t () => (float[2,3] a) { a = Mul(x, w) },
                      else_branch = e () => (float[2,3] b) { b = Identity(x) }>"""
    with pytest.raises(NoGradientRule, match="If cannot be differentiated"):
        differentiate(model(f"{body} {LOSS}"), "loss", ["w"])


def test_a_form_that_a_rule_does_not_cover_is_named() -> None:
    body = f"y, m, v = BatchNormalization<training_mode=1>(x, s, b, q, u) {LOSS}"
    inputs = "float[2,3] x, float[3] s, float[3] b, float[3] q, float[3] u"
    with pytest.raises(NoGradientRule, match="it is in training mode"):
        differentiate(model(body, inputs), "loss", ["x"])


def test_old_graphs_and_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="opset 13 cannot be differentiated"):
        differentiate(model(f"y = Mul(x, w) {LOSS}", opset=13), "loss", ["w"])
    with pytest.raises(InputError, match="no tensor 'v'"):
        differentiate(model(f"y = Mul(x, w) {LOSS}"), "loss", ["v"])


def test_a_tensor_that_the_loss_ignores_has_zeros() -> None:
    made = differentiate(model(f"y = Exp(x) {LOSS}", "float[2,3] x, float[N,3] w"), "loss", ["w"])
    np.testing.assert_array_equal(run(made.model, x=X, w=np.ones((5, 3)))["w_gradient"], np.zeros((5, 3)))


def test_an_unread_piece_of_a_split_is_zero() -> None:
    made = differentiate(
        model(f"a, b = Split<axis=1, num_outputs=2>(x) y = Exp(b) {LOSS}", "float[2,4] x"), "loss", ["x"]
    )
    found = run(made.model, x=np.zeros((2, 4)))["x_gradient"]
    np.testing.assert_array_equal(found, [[0, 0, 1, 1]] * 2)


def test_inner_tensors_may_be_trained() -> None:
    made = differentiate(model(f"a = Mul(x, w) y = Exp(a) {LOSS}"), "loss", ["a"])
    np.testing.assert_allclose(run(made.model, x=X, w=W)["a_gradient"], np.exp(X * W), rtol=1e-6)


def test_the_forward_pass_is_used_again() -> None:
    made = differentiate(model(f"a = Sigmoid(x) b = Mul(a, w) y = Softplus(b) {LOSS}"), "loss", ["x", "w"])
    assert kinds(made.model)["Sigmoid"] == 2  # that of the forward pass, and that of Softplus's gradient


def test_the_sweep_begins_where_it_is_told() -> None:
    tape = record(model("y = Mul(x, w)", outputs="float[2,3] y"))
    found = gradients(tape, {"y": tape.sub("y", 1.0)}, ["w"])
    values = run(tape.assemble([found["w"]]), x=X, w=W)
    np.testing.assert_allclose(values[found["w"]], (X * W - 1) * X)


def test_what_the_seeds_do_not_depend_on_has_no_gradient() -> None:
    tape = record(model("y = Exp(x)", "float[2,3] x, float[2,3] w", outputs="float[2,3] y"))
    assert list(gradients(tape, {"y": 1.0}, ["w", "x"])) == ["x"]


def test_another_set_of_forms_may_be_put_in() -> None:
    faster = dict(RULES)

    @vjp("Exp", rules=faster)
    def _exp(g: Tape, node: Node, dy: str) -> str:
        return g.mul(dy, 100.0)

    body = f"y = Exp(x) {LOSS}"
    assert (run(differentiate(model(body), "loss", ["x"], faster).model, x=X, w=W)["x_gradient"] == 100).all()
    np.testing.assert_allclose(
        run(differentiate(model(body), "loss", ["x"]).model, x=X, w=W)["x_gradient"], np.exp(X), rtol=1e-6
    )


def test_names_of_the_graph_are_not_taken() -> None:
    body = f"w_gradient = Mul(x, w) Mul_1 = Exp(w_gradient) y = Mul(Mul_1, x) {LOSS}"
    made = differentiate(model(body), "loss", ["w"])
    assert made.gradients["w"] == "w_gradient_2"
    np.testing.assert_allclose(run(made.model, x=X, w=W)["w_gradient_2"], X * X * np.exp(X * W), rtol=1e-6)


def test_a_network_with_a_dynamic_batch(residual_model: onnx.ModelProto, residual_data: dict[str, Array]) -> None:
    """All weights of a residual network at once, against a central difference of the reference in float64."""
    graph = residual_model.graph
    graph.node.append(onnx.helper.make_node("ReduceSumSquare", ["scores"], ["power"], keepdims=0))
    graph.output.append(onnx.helper.make_tensor_value_info("power", onnx.TensorProto.FLOAT, []))
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    feeds = {"image": residual_data["image"][:3]}
    tape = record(residual_model)
    found = gradients(tape, {"scores": tape.mul("scores", 2.0)}, list(weights))
    values = run(tape.assemble(found.values()), **feeds)
    random = np.random.default_rng(0)
    step = {name: 1e-6 * random.normal(size=value.shape) for name, value in weights.items()}

    def loss(sign: int) -> float:
        moved = onnx.ModelProto.FromString(residual_model.SerializeToString())
        del moved.graph.initializer[:], moved.graph.output[:]
        for item in moved.graph.input:
            item.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        moved.graph.output.append(onnx.helper.make_tensor_value_info("power", onnx.TensorProto.DOUBLE, []))
        for name, value in weights.items():
            moved.graph.initializer.append(onnx.numpy_helper.from_array(value + sign * step[name], name))
        return float(ReferenceEvaluator(moved).run(None, {"image": feeds["image"].astype(np.float64)})[0])

    slope = sum(float((values[found[name]] * step[name]).sum()) for name in weights)
    assert slope == pytest.approx((loss(1) - loss(-1)) / 2, rel=1e-4)  # float32 sums of 64 positions
