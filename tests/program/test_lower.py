"""Lowering: the list of steps, values made before they are read, one quantizer step per tensor."""

from __future__ import annotations

import pickle
from collections import Counter

import onnx
import pytest
from graph_strategies import graphs
from graph_strategies import samples as drawn_samples
from hypothesis import HealthCheck, given, settings
from networks import (
    ATTENTION,
    CALIBRATE,
    CHANNELS_LAST,
    CLASSIFIER,
    FLOAT_ISLAND,
    MOVERS,
    NETWORKS,
    RELU6,
    RESIDUAL,
    compiled,
    run,
)

from qcompile import Config, InputError, QModel, open_model
from qcompile.errors import QCompileError
from qcompile.ir import Constant
from qcompile.program.lower import Kind, Program, Step, lower
from qcompile.quant.plan import Edge, Form


def lowered(text: str, **bits: int) -> list[str]:
    model = compiled(text, CALIBRATE, **({"w": 4, "a": 4} | bits))
    return [line(step) for step in lower(model.graph, model.plan).steps]


def line(step: Step) -> str:
    """Return a step as "node: inputs -> outputs", or "kind: ..." where it has no node."""
    inputs, outputs = (", ".join(value.name for value in values) for values in (step.inputs, step.outputs))
    return f"{step.node.name if step.node else step.kind.upper()}: {inputs} -> {outputs}"


def test_residual_block() -> None:
    assert lowered(RESIDUAL) == [
        "ENCODE: image -> image_q8",
        "stem: image_q8 -> trunk_q8",  # its Relu is absorbed
        "RECODE: trunk_q8 -> trunk_q4",
        "first: trunk_q4 -> c_q4",
        "second: c_q4 -> d_q8",
        "add: d_q8, trunk_q8 -> t_q8",
        "head: t_q8 -> y_q8",
        "DECODE: y_q8 -> y",
    ]


def test_codes_know_the_key_of_their_quantizer_where_several_are_equal() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    equal = model.plan.quantizers[Edge("c")]
    model.plan.quantizers |= dict.fromkeys((Edge("trunk", "first"), Edge("c")), equal)
    program = lower(model.graph, model.plan)
    keys = {value.name: value.key for step in program.steps for value in step.outputs if value.quantizer}
    assert keys == {
        "image_q8": Edge("image"),
        "trunk_q8": Edge("trunk"),
        "trunk_q4": Edge("trunk", "first"),
        "c_q4": Edge("c"),
        "d_q8": Edge("d"),
        "t_q8": Edge("t"),
        "y_q8": Edge("y"),
    }


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_program_survives_pickle_and_its_nodes_are_those_of_its_graph(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=4)
    program = lower(model.graph, model.plan)
    graph, found = pickle.loads(pickle.dumps((model.graph, program)))
    assert [line(step) for step in found.steps] == [line(step) for step in program.steps]
    assert [step.reads for step in found.steps] == [step.reads for step in program.steps]
    assert found.tensors == program.tensors and found.graph is graph
    nodes = {node.name: node for node in graph.nodes}
    assert all(step.node is nodes[step.node.name] for step in found.steps if step.node is not None)


def test_residual_block_with_one_narrow_trunk() -> None:
    steps = lowered(RESIDUAL, residual_bits=4)
    assert not any(step.startswith("RECODE") for step in steps)
    assert "add: d_q8, trunk_q4 -> t_q8" in steps


def test_classifier_ends_in_float_without_a_step_for_it() -> None:
    assert lowered(CLASSIFIER) == [
        "ENCODE: image -> image_q8",
        "conv1: image_q8 -> b_q4",
        "conv2: b_q4 -> d_q8",
        "pool: d_q8 -> e_q8",
        "flatten: e_q8 -> f_q8",
        "head: f_q8 -> logits",
    ]


def test_float_island_is_dequantized_and_quantized_again() -> None:
    assert lowered(FLOAT_ISLAND) == [
        "ENCODE: image -> image_q8",
        "conv1: image_q8 -> a_q8",
        "DECODE: a_q8 -> a",
        "tanh: a -> b",
        "ENCODE: b -> b_q4",
        "conv2: b_q4 -> c_q8",
        "DECODE: c_q8 -> c",
        "neg: c -> d",
        "abs: d -> e",
        "ENCODE: e -> e_q8",
        "conv3: e_q8 -> y_q8",
        "DECODE: y_q8 -> y",
    ]


def test_movers_move_codes() -> None:
    assert lowered(MOVERS)[1:-1] == [
        "conv1: image_q8 -> a_q8",
        "pool: a_q8 -> b_q8",
        "pad: b_q8 -> c_q8",
        "up: c_q8 -> d_q8",
        "turn: d_q8 -> e_q8",
        "shape: e_q8 -> f_q8",
        "cut: f_q8 -> h_q8",
        "parts: h_q8 -> i_q8, j_q8",
        "conv2: i_q8 -> y_q8",
    ]
    assert lowered(CHANNELS_LAST)[:2] == ["ENCODE: image -> image_q8", "turn: image_q8 -> a_q8"]


def test_mover_of_narrow_codes() -> None:
    """The narrow quantizer stands in front of the layer, behind the mover."""
    steps = lowered(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [turn] b = Transpose<perm = [0,1,3,2]>(a)  [second] c = Conv(b, B)
          [add] d = Add(a, c)  [head] y = Conv(d, B)
        }"""
    )
    assert steps[2:5] == ["turn: a_q8 -> b_q8", "RECODE: b_q8 -> b_q4", "second: b_q4 -> c_q8"]


def test_all_codes_are_known_by_their_tensors() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    program = lower(model.graph, model.plan)
    made = {value.name for step in program.steps for value in step.outputs if value.quantizer is not None}
    assert set(program.tensors) == made
    assert program.tensors["trunk_q8"] == program.tensors["trunk_q4"] == "trunk"


def test_products_of_activations() -> None:
    assert "scores: q_q8, t_q8 -> s" in lowered(ATTENTION)  # float at once, for the Softmax
    assert "mix: p_q8, v_q8 -> m_q8" in lowered(ATTENTION)


def test_constant_operand_is_quantized_too() -> None:
    steps = lowered(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,1,1] K, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [scaled] b = Mul(K, a)  [last] y = Conv(b, B)
        }"""
    )
    assert steps[2:4] == ["ENCODE: K -> K_q8", "scaled: K_q8, a_q8 -> b_q8"]


def test_names_that_are_taken() -> None:
    model = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] x_q8) {
          [first] a_q8 = Conv(x, A)  [relu] a = Relu(a_q8)  [last] x_q8 = Conv(a, B)
        }""",
        CALIBRATE,
    )
    program = lower(model.graph, model.plan)
    assert_executable(model, program)
    assert {"x_q8", "a_q8"}.isdisjoint(program.tensors)


def test_a_compute_node_that_no_quantizer_was_placed_for_is_no_silent_float() -> None:
    """Behind place-quantizers another pass may not make a compute node of a node; nothing else stands in for it."""
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    del model.plan.reads[Edge("trunk", "first")]
    with pytest.raises(QCompileError, match="no quantizer was placed for 'trunk' in front of 'first'"):
        lower(model.graph, model.plan)


def test_float_reader_of_an_absorbed_clip_sees_the_clipped_value() -> None:
    steps = lowered(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y, float[N,4,P,Q] t) {
          [first] a = Conv(x, A)  [relu] b = Relu(a)  [last] y = Conv(b, B)  [tanh] t = Tanh(b)
        }"""
    )
    assert "DECODE: b_q8 -> b" in steps and "tanh: b -> t" in steps


def test_clip_behind_a_float_node_is_skipped_and_its_quantizer_reads_what_is_before_it() -> None:
    steps = lowered(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [tanh] t = Tanh(a)  [relu] b = Relu(t)  [last] y = Conv(b, B)
        }"""
    )
    assert steps[3:6] == ["tanh: a -> t", "ENCODE: t -> b_q8", "last: b_q8 -> y_q8"]


def test_a_step_holds_the_clips_that_its_quantizer_carries_out() -> None:
    model = compiled(RELU6, CALIBRATE, w=4, a=4)
    groups = [[node.name for node in step.nodes] for step in lower(model.graph, model.plan).steps]
    assert groups == [[], ["expand", "clip1"], ["depthwise", "clip2"], ["project"], []]
    behind_float = compiled(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B) => (float[N,4,P,Q] y) {
          [first] a = Conv(x, A)  [tanh] t = Tanh(a)  [relu] b = Relu(t)  [last] y = Conv(b, B)
        }""",
        CALIBRATE,
    )
    steps = pickle.loads(pickle.dumps(lower(behind_float.graph, behind_float.plan))).steps
    encode = next(step for step in steps if step.kind is Kind.ENCODE and step.nodes)
    assert [clip.name for clip in encode.clips] == ["relu"] and encode.node is None


def assert_executable(model: QModel, program: Program) -> None:
    """Every value is made once and before it is read, each step reads what its kind says, nodes come once each."""
    made = {tensor.name for tensor in model.graph.inputs}
    made |= {name for name, tensor in model.graph.tensors().items() if isinstance(tensor, Constant)}
    coded = {Form.COMPUTE, Form.ARITHMETIC, Form.CODES, Kind.DECODE, Kind.RECODE}
    for step in program.steps:
        for value in step.inputs:
            assert value.name in made, f"{line(step)}: {value.name} is not there yet"
            assert (value.quantizer is not None) == (step.action in coded), line(step)
        assert (step.form is not None) == (step.kind is Kind.RUN), line(step)
        for value in step.outputs:
            assert value.name not in made, f"{line(step)}: {value.name} is made twice"
            made.add(value.name)
    assert {tensor.name for tensor in model.graph.outputs} <= made
    nodes = Counter(step.node.name for step in program.steps if step.node)
    unabsorbed = {node.name for node in model.graph.nodes if model.plan.form(node.name) is not Form.ABSORBED}
    assert nodes == dict.fromkeys(unabsorbed, 1)
    carried_out = {clip.name for step in program.steps for clip in step.clips}
    assert carried_out == {node.name for node in model.graph.nodes} - unabsorbed


def assert_one_quantizer_each(model: QModel, program: Program) -> None:
    """A float value is quantized once for each quantizer; requantizing goes from wide to narrow codes of one tensor."""
    keys = Counter(step.outputs[0] for step in program.steps if step.kind in (Kind.ENCODE, Kind.RECODE))
    assert not keys or max(keys.values()) == 1
    for step in program.steps:
        if step.kind is Kind.RECODE:
            (wide,), (narrow,) = step.inputs, step.outputs
            assert wide.quantizer is not None and narrow.quantizer is not None
            assert narrow.quantizer.bits < wide.quantizer.bits
    for value in (value for step in program.steps for value in step.outputs if value.quantizer is not None):
        assert value.quantizer is not None
        assert value.key is not None and model.plan.quantizers[value.key] is value.quantizer
        assert model.plan.stands_on(value.key) == model.plan.groups[program.tensors[value.name]]
    for edge, key in model.plan.reads.items():
        step = next(step for step in program.steps if step.node is not None and step.node.name == edge.reader)
        assert key in {value.key for value in step.inputs if program.tensors[value.name] == edge.tensor}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_executable(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=3)
    program = lower(model.graph, model.plan)
    assert_executable(model, program)
    assert_one_quantizer_each(model, program)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_any_graph_is_executable(source: onnx.ModelProto) -> None:
    model = open_model(source, Config(w=4, a=4, threads=1), {"x": drawn_samples(source, 4)})
    try:
        run(model, CALIBRATE)
    except InputError as error:
        assert "nothing to quantize" in str(error)
        return
    program = lower(model.graph, model.plan)
    assert_executable(model, program)
    assert_one_quantizer_each(model, program)


def test_relu6_is_two_quantizers_with_its_bounds() -> None:
    model = compiled(RELU6, CALIBRATE, w=4, a=4)
    outputs = [value for step in lower(model.graph, model.plan).steps for value in step.outputs if value.quantizer]
    clipped = {value.name: value.quantizer for value in outputs if value.name in ("b_q4", "d_q8")}
    assert len(clipped) == 2
    for quantizer in clipped.values():
        assert quantizer is not None
        assert quantizer.zero_point == 0 and quantizer.high <= 6.0
