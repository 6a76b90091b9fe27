"""Placement: where quantizers stand, what they share, how many bits each has."""

from __future__ import annotations

import numpy as np
import pytest
from networks import (
    CHAIN,
    CHANNELS_LAST,
    CLASSIFIER,
    CONCAT,
    ELEMENTWISE,
    HARD_SWISH,
    MOVERS,
    NETWORKS,
    PLACE,
    RELU6,
    RESIDUAL,
    SQUEEZE_EXCITE,
    compiled,
    network,
)
from placed import W4A4, between, bits, forms, placed, reason

from qcompile import Config, open_model
from qcompile.program.operands import data_inputs
from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec
from qcompile.quant.plan import Edge, Form
from qcompile.targets.ort_cpu.forms import HARD_SIGMOID

# the trunk of a residual network


def test_trunk_is_wide_with_a_second_narrow_quantizer() -> None:
    plan = placed(RESIDUAL, **W4A4)
    assert bits(plan) == {"image": 8, "trunk": 8, "trunk@4": 4, "c": 4, "d": 8, "t": 8, "y": 8}
    assert plan.specs[Edge("trunk")] == ActivationSpec(unsigned(8), 0.0, np.inf)
    assert plan.specs[Edge("trunk", "first")] == ActivationSpec(unsigned(4), 0.0, np.inf)
    assert plan.key("trunk") == Edge("trunk") and plan.key("trunk", "first") == Edge("trunk", "first")
    assert plan.key("c", "second") == Edge("c")  # nobody else reads it
    assert plan.specs[Edge("t")].even_zero_point and not plan.specs[Edge("d")].even_zero_point  # QLinearAdd rounds late


@pytest.mark.parametrize("residual, expected", [(4, {"trunk": 4}), (3, {"trunk": 4}), (6, {"trunk": 6, "trunk@4": 4})])
def test_residual_bits(residual: int, expected: dict[str, int]) -> None:
    plan = placed(RESIDUAL, **W4A4, residual_bits=residual)
    assert {key: count for key, count in bits(plan).items() if key.startswith("trunk")} == expected


def test_a_narrow_quantizer_behind_a_sum_needs_no_even_zero_point() -> None:
    """A kernel that rounds late writes the wide codes; the narrow ones are made from these, or from the real value."""
    plan = between(
        "[sum] b = Add(a, a)  [twice] z = Add(b, b)  [end] u = Conv(z, B)",
        outputs=", float[N,4,P,Q] u",
        **W4A4,
        first_last_bits=4,
    )
    assert plan.specs[Edge("b")].even_zero_point and not plan.specs[plan.key("b", "last")].even_zero_point


def test_readers_of_different_bits_get_the_widest_and_a_narrow_one() -> None:
    plan = placed(CONCAT, w=4, a=4, bits=(("left", 4, 3), ("right", 4, 6)))
    assert bits(plan)["b"] == 6 and bits(plan)["b@3"] == 3
    assert plan.stacked()["b"] == [Edge("b"), Edge("b", "left")]
    assert plan.key("b", "left") == Edge("b", "left") and plan.key("b", "right") == Edge("b")


def test_graph_output_inside_is_wide() -> None:
    plan = between("[relu] b = Relu(a)", outputs=", float[N,4,P,Q] b", **W4A4, first_last_bits=4)
    assert bits(plan) == {"x": 4, "b": 8, "b@4": 4, "y": 8}


# clips


@pytest.mark.parametrize(
    "clip, constants, bounds",
    [
        ("Relu(a)", "", (0, np.inf)),
        ("Clip(a, lo, hi)", "float lo = {0}, float hi = {6}", (0, 6)),
        ("Clip(a, lo, hi)", "float lo = {-1}, float hi = {2.5}", (-1, 2.5)),
        ("Clip(a, lo)", "float lo = {-3}", (-3, np.inf)),
        ("Clip(a, , hi)", "float hi = {0}", (-np.inf, 0)),
    ],
)
def test_clip_is_absorbed_with_its_bounds(clip: str, constants: str, bounds: tuple[float, float]) -> None:
    plan = between(f"[clip] b = {clip}", constants=constants)
    assert plan.form("clip") is Form.ABSORBED
    assert plan.specs[Edge("b")] == ActivationSpec(unsigned(8), *bounds)
    assert "a" not in plan.groups


def test_bounds_of_two_clips_in_a_row_are_intersected() -> None:
    constants = "float lo = {-1}, float hi = {4}"
    plan = between("[relu] r = Relu(a) [clip] b = Clip(r, lo, hi)", constants=constants)
    assert plan.specs[Edge("b")] == ActivationSpec(unsigned(8), 0, 4)


def test_clip_behind_an_addition_keeps_the_even_zero_point() -> None:
    plan = between("[add] s = Add(a, a) [clip] b = Clip(s, lo, hi)", constants="float lo = {-1}, float hi = {4}")
    assert plan.specs[Edge("b")] == ActivationSpec(unsigned(8), -1, 4, even_zero_point=True)


@pytest.mark.parametrize(
    "nodes, outputs",
    [
        ("[relu] r = Relu(a)  [add] b = Add(r, a)", ""),  # two readers
        ("[relu] b = Relu(a)", ", float[N,4,P,Q] a"),  # its input is a graph output
        ("[pool] p = MaxPool<kernel_shape = [2,2]>(a)  [relu] b = Relu(p)", ""),  # others may read what it moves
    ],
)
def test_clip_that_is_not_alone_clips_codes(nodes: str, outputs: str) -> None:
    plan = between(nodes, outputs=outputs)
    assert plan.form("relu") is Form.CODES
    clipped = "b" if "b = Relu" in nodes else "r"
    assert plan.groups[clipped] == "a" and plan.specs[Edge("a")].lower == -np.inf


@pytest.mark.parametrize("lower, upper", [(1, 6), (-6, -1), (0, 0)])
def test_clip_to_an_interval_without_zero_stays_float(lower: float, upper: float) -> None:
    plan = between("[clip] b = Clip(a, lo, hi)", constants=f"float lo = {{{lower}}}, float hi = {{{upper}}}")
    assert reason(plan, "clip") == "its interval does not contain zero"


def test_clip_whose_bounds_are_computed_stays_float() -> None:
    plan = between("[top] m = ReduceMax<keepdims = 0>(x)  [clip] b = Clip(a, , m)")
    assert reason(plan, "clip") == "its bounds are not constant"


def test_clip_behind_a_float_node_is_absorbed_by_the_quantizer_behind_it() -> None:
    plan = between("[tanh] t = Tanh(a)  [relu] b = Relu(t)")
    assert plan.form("relu") is Form.ABSORBED
    assert plan.specs[Edge("b")] == ActivationSpec(unsigned(8), 0, np.inf) and "t" not in plan.groups


def test_clip_behind_hard_sigmoid_keeps_its_bounds() -> None:
    plan = between(
        "[gate] g = HardSigmoid(a)  [clip] b = Clip(g, lo, hi)", constants="float lo = {0}, float hi = {0.5}"
    )
    assert plan.form("clip") is not Form.ABSORBED or plan.specs[Edge("b")].fixed is None


# light nodes


def test_classifier_keeps_its_logits_float() -> None:
    plan = placed(CLASSIFIER, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "relu1": "absorbed", "conv2": "compute", "relu2": "absorbed", "pool": "arithmetic",
        "flatten": "codes", "head": "compute",
    }  # fmt: skip
    assert bits(plan) == {"image": 8, "b": 4, "d": 8, "e": 8}
    assert plan.groups["f"] == "e" and "logits" not in plan.groups


def test_last_convolution_has_a_quantizer_for_only_then_it_is_integer() -> None:
    assert bits(placed(CHAIN, **W4A4))["y"] == 8


def test_concat_inputs_have_quantizers_of_their_own() -> None:
    plan = placed(CONCAT, **W4A4)
    assert plan.form("join") is Form.ARITHMETIC
    assert {name: plan.groups[name] for name in "cef"} == {"c": "c", "e": "e", "f": "f"}
    assert plan.specs[Edge("e")] == ActivationSpec(unsigned(8), 0.0, np.inf)


def test_product_with_a_constant() -> None:
    plan = placed(ELEMENTWISE, **W4A4)
    assert set(forms(plan).values()) == {"compute", "arithmetic"}
    assert bits(plan) == {"image": 8, "a": 8, "K": 8, "b": 8, "c": 8, "d": 8, "e": 8, "f": 8, "y": 8}
    even = {key.tensor for key, spec in plan.specs.items() if spec.even_zero_point}
    assert even == {"b", "d", "f"}  # Mul, AveragePool, Mul


def test_squeeze_and_excite() -> None:
    plan = placed(SQUEEZE_EXCITE, **W4A4)
    assert Form.FLOAT not in {node.form for node in plan.nodes.values()}
    assert plan.specs[Edge("h")].fixed == HARD_SIGMOID and plan.specs[Edge("h")].bits == HARD_SIGMOID.bits
    assert bits(plan)["c"] == 4 and bits(plan)["i"] == 8


def test_hard_swish() -> None:
    plan = placed(HARD_SWISH, **W4A4)
    assert plan.form("swish") is Form.ARITHMETIC
    assert plan.specs[Edge("b")] == ActivationSpec(unsigned(8), even_zero_point=True)


def test_narrow_quantizer_behind_hard_sigmoid_is_calibrated() -> None:
    plan = between("[gate] b = HardSigmoid(a)", **W4A4, first_last_bits=4)
    assert plan.specs[Edge("b")].fixed == HARD_SIGMOID and plan.specs[Edge("b", "last")] == ActivationSpec(unsigned(4))


def test_movers_share_the_quantizer_of_what_they_move() -> None:
    plan = placed(MOVERS, **W4A4)
    assert forms(plan) == {
        "conv1": "compute", "pool": "codes", "pad": "codes", "up": "codes", "turn": "codes", "shape": "codes",
        "cut": "codes", "parts": "codes", "conv2": "compute",
    }  # fmt: skip
    assert plan.groups == {"image": "image", "y": "y"} | dict.fromkeys("abcdefhij", "a")


def test_mover_in_front_of_the_first_layer_moves_codes() -> None:
    plan = placed(CHANNELS_LAST, **W4A4)
    assert plan.form("turn") is Form.CODES and plan.groups["a"] == "image"
    assert plan.form("back") is Form.CODES and plan.groups["y"] == "d"


# properties of every network


@pytest.mark.parametrize("settings", [{}, W4A4, {"w": 2, "a": 3, "residual_bits": 3}], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_plan_is_complete(name: str, settings: dict[str, int]) -> None:
    model = compiled(NETWORKS[name], PLACE, **settings)
    plan = model.plan
    assert plan.nodes.keys() == {node.name for node in model.graph.nodes}
    assert all(node.reason for node in plan.nodes.values() if node.form is Form.FLOAT)
    assert {key.tensor for key in plan.specs if not key.reader} == set(plan.groups.values())
    assert {key for key in plan.specs if key.reader} <= set(plan.reads.values())  # no quantizer that nobody reads
    compute = [node for node in model.graph.nodes if plan.form(node.name) is Form.COMPUTE]
    assert plan.reads.keys() == {Edge(tensor.name, node.name) for node in compute for tensor in data_inputs(node)}
    assert all(plan.groups[root] == root for root in plan.groups.values())


def test_placing_twice_gives_the_same_plan() -> None:
    model = open_model(network(RELU6), Config(w=4, a=4))
    for item in PLACE:
        item.run(model)
    before = (dict(model.plan.nodes), dict(model.plan.groups), dict(model.plan.specs))
    assert PLACE[-1].run(model) == 4
    assert before == (model.plan.nodes, model.plan.groups, model.plan.specs)
