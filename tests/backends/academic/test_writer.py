"""Files of the academic target: float operators on quantized values, equal to the float simulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from golden_text import golden_text
from graph_strategies import graphs
from graph_strategies import samples as drawn_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import (
    CORRECT,
    ELEMENTWISE,
    EMIT,
    NETWORKS,
    PLACE,
    RESIDUAL,
    Arrays,
    compiled,
    initializers,
    network,
    run,
    samples,
)
from onnx.reference import ReferenceEvaluator

from qcompile import Config, InputError, PassManager, QModel, open_model
from qcompile.backends import check
from qcompile.backends.academic.writer import MARK
from qcompile.ir import Constant, Node, node_proto, topological
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.pipeline import build
from qcompile.quant.arithmetic import fake_quantize
from qcompile.quant.plan import Form
from qcompile.runtime.fused import is_integer, optimized_nodes
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

PRECISIONS = {"w8a8": {"w": 8, "a": 8}, "w4a4": {"w": 4, "a": 4}, "w2a4": {"w": 2, "a": 4}}
BY_HAND = ("chain", "residual", "relu6", "classifier", "attention", "squeeze_excite", "elementwise", "movers")
Academic = Callable[[str, str], QModel]


@pytest.fixture(scope="module")
def academic() -> Academic:
    """Compile a network once for all tests of this file."""
    made: dict[tuple[str, str], QModel] = {}

    def build(name: str, precision: str) -> QModel:
        if (name, precision) not in made:
            settings = PRECISIONS[precision]
            made[name, precision] = compiled(NETWORKS[name], (*CORRECT, InsertQDQ()), target="academic", **settings)
        return made[name, precision]

    return build


def file_of(model: QModel) -> onnx.ModelProto:
    assert model.emitted is not None
    return model.emitted


def simulated(model: QModel, feeds: Arrays) -> Arrays:
    return Session(simulate(model.graph, model.plan, "float"), level="off", fuse_qdq=False, threads=1).run(feeds)


def assert_float32_apart(found: Arrays, expected: Arrays) -> None:
    """Values differ by float32's rounding; a sum next to a half may fall to its other side, two in a thousand."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        off = np.abs(found[name] - values) > 1e-5 * np.abs(values).max()
        assert np.count_nonzero(off) <= off.size // 500, name


def by_node(model: QModel, feeds: Arrays) -> Arrays:
    """Interpret graph and plan in numpy, node by node: no list of steps, no writer, no ONNX Runtime."""
    plan, values = model.plan, dict(feeds)
    for node in topological(model.graph):
        for tensor, array in zip(node.outputs, made_by(node, model, values)):
            quantized = plan.form(node.name) is not Form.FLOAT and tensor.name in plan.groups
            quantizer = plan.quantizers[plan.key(tensor.name)] if quantized else None
            values[tensor.name] = fake_quantize(array, quantizer) if quantizer else array
    return {tensor.name: values[tensor.name] for tensor in model.graph.outputs}


def made_by(node: Node, model: QModel, values: Arrays) -> list[np.ndarray]:
    plan, placed, feeds = model.plan, model.plan.nodes[node.name], Arrays()
    for place, tensor in enumerate(node.inputs):
        if tensor.name:
            array = np.asarray(tensor.values) if isinstance(tensor, Constant) else values[tensor.name]
            if placed.form not in (Form.FLOAT, Form.ABSORBED) and tensor.name in plan.groups:
                key = plan.key(tensor.name, node.name if placed.form is Form.COMPUTE else "")
                array = fake_quantize(array, plan.quantizers[key])
            feeds[f"in{place}"] = array
    if node.name in plan.weights:
        feeds["in1"] = plan.weights[node.name].dequantize()
    if node.name in plan.biases:
        feeds["in2"] = plan.biases[node.name]
    names = [f"in{place}" if f"in{place}" in feeds else "" for place in range(max(len(node.inputs), len(feeds)))]
    proto = node_proto(node, names, [f"out{place}" for place in range(len(node.outputs))])
    found: list[np.ndarray] = ReferenceEvaluator(proto).run(None, feeds)  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"academic/{name}.txt", golden_text(file_of(compiled(NETWORKS[name], EMIT, w=4, a=4, target="academic"))))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_computes_what_the_simulation_does(name: str, precision: str, academic: Academic) -> None:
    model = academic(name, precision)
    feeds = samples(model.source, 16, seed=5)
    expected = simulated(model, feeds)
    for output, values in Session(file_of(model), level="off", threads=1).run(feeds).items():
        np.testing.assert_array_equal(values, expected[output], output)
    assert_float32_apart(Session(file_of(model), threads=1).run(feeds), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", BY_HAND)
def test_it_computes_what_graph_and_plan_say(name: str, precision: str, academic: Academic) -> None:
    model = academic(name, precision)
    feeds = samples(model.source, 16, seed=6)
    assert_float32_apart(Session(file_of(model), threads=1).run(feeds), by_node(model, feeds))


NO_KERNEL = {  # nodes "light" between two convolutions that ort-cpu's integer kernels do not take as they stand
    "AveragePool": "[light] b = AveragePool<kernel_shape = [2,2], strides = [3,3], ceil_mode = 1>(a)",
    "HardSigmoid": "[light] b = HardSigmoid<alpha = 0.3, beta = 0.3>(a)",
    "PRelu": "[slopes] s = Sigmoid(a)  [light] b = PRelu(a, s)",
    "DepthToSpace": "[light] t = DepthToSpace<blocksize = 2>(a)  [four] b = Concat<axis = 1>(t, t, t, t)",
    "SpaceToDepth": "[light] t = SpaceToDepth<blocksize = 2>(a)  [back] b = DepthToSpace<blocksize = 2>(t)",
}


@pytest.mark.parametrize("op", NO_KERNEL)
def test_what_a_kernel_forbids_is_quantized(op: str) -> None:
    text = f"""net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {{
      [first] a = Conv(x, A)  {NO_KERNEL[op]}  [last] y = Conv(b, B)
    }}"""
    model = compiled(text, EMIT, target="academic", w=4, a=4, first_last_bits=4)
    assert model.plan.form("light") in (Form.ARITHMETIC, Form.CODES)
    assert compiled(text, PLACE).plan.form("light") is Form.FLOAT
    feeds = samples(model.source, 16, seed=5)
    np.testing.assert_array_equal(
        Session(file_of(model), level="off", threads=1).run(feeds)["y"], simulated(model, feeds)["y"]
    )
    assert_float32_apart(Session(file_of(model), threads=1).run(feeds), by_node(model, feeds))


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(graphs(), st.sampled_from([2, 3, 4, 8]), st.sampled_from([2, 4, 8]))
def test_it_computes_what_the_simulation_of_any_graph_does(source: onnx.ModelProto, w: int, a: int) -> None:
    model = open_model(source, Config(w=w, a=a, threads=1, target="academic"), {"x": drawn_samples(source, 8)})
    try:
        run(model, EMIT)
    except InputError as error:
        assert "nothing to quantize" in str(error)
        return
    assert check(file_of(model), model.target) == []
    feeds = {"x": drawn_samples(source, 8, seed=3)}
    for output, values in Session(file_of(model), level="off", threads=1).run(feeds).items():
        np.testing.assert_array_equal(values, simulated(model, feeds)[output], output)


def test_what_is_trained_is_what_the_file_computes() -> None:
    source = network(RESIDUAL)
    config = Config(w=2, a=4, method="qdrop", steps=5, target="academic", threads=1)
    model = open_model(source, config, samples(source, 60))
    PassManager(item for item in build(config) if item.name != "validate").run(model)
    feeds = samples(source, 16, seed=5)
    found = Session(file_of(model), threads=1).run(feeds)
    assert_float32_apart(found, by_node(model, feeds))
    assert_float32_apart(found, simulated(model, feeds))
    assert any(outcome.trained for outcome in model.outcomes)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_valid_breaks_no_rule_and_runs_on_float_kernels(name: str, academic: Academic) -> None:
    model = academic(name, "w4a4")
    onnx.checker.check_model(file_of(model), full_check=True)
    assert check(file_of(model), model.target) == []
    assert [kernel for _, kernel in optimized_nodes(file_of(model)) if is_integer(kernel) or "Quant" in kernel] == []
    kinds = {tensor.data_type for tensor in file_of(model).graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_weights_and_biases_are_those_of_the_plan_in_float() -> None:
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), w=3, a=4, target="academic")
    arrays = initializers(file_of(model))
    for node, stem in (("stem", "W1"), ("first", "W2"), ("second", "W3"), ("head", "W4")):
        np.testing.assert_array_equal(arrays[stem], model.plan.weights[node].dequantize())
    np.testing.assert_array_equal(arrays["B3"], model.plan.biases["second"])


def test_the_clip_of_a_quantizer_tells_bits_and_zero_point(academic: Academic) -> None:
    model = academic("residual", "w4a4")
    notes = [node.doc_string for node in file_of(model).graph.node if node.doc_string]
    assert len(notes) == len(model.plan.quantizers)
    assert sorted(notes) == sorted(
        f"{MARK}0 .. {quantizer.grid.high} in uint8, zero point {quantizer.zero_point}"
        for quantizer in model.plan.quantizers.values()
    )


def test_a_file_can_be_compiled_again() -> None:
    """It is a float model like any other: what its notes say of its own quantizers is not said of the new file's."""
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), w=4, a=4, target="academic")
    again = compiled(file_of(model), (*CORRECT, InsertQDQ()), target="academic")
    assert check(file_of(again), again.target) == []
    noted = [node for node in file_of(again).graph.node if node.doc_string]
    assert len(noted) == len(again.plan.quantizers) and len(noted) < len(again.graph.nodes)


def test_what_only_float_nodes_read_is_not_rounded() -> None:
    model = compiled(RESIDUAL, (*CORRECT, InsertQDQ()), target="academic")
    assert "y" not in model.plan.groups and "y" in compiled(RESIDUAL, CORRECT).plan.groups


def test_operators_are_themselves() -> None:
    """A HardSigmoid has a quantizer of its own, none that a kernel dictates, and zero points need not be even."""
    model = compiled(NETWORKS["squeeze_excite"], (*CORRECT, InsertQDQ()), target="academic")
    assert model.plan.form("gate") is Form.ARITHMETIC and model.plan.specs[model.plan.key("h")].fixed is None
    assert [node.op_type for node in file_of(model).graph.node if node.name == "gate"] == ["HardSigmoid"]
    plan = compiled(ELEMENTWISE, CORRECT, target="academic").plan
    assert not any(spec.even_zero_point for spec in plan.specs.values())
