"""Each rule against a plan that the compiler made and one edit broke."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import CALIBRATE, NETWORKS, compiled
from onnx import ModelProto

from qcompile import Config, QModel, compile
from qcompile.quant.grid import Grid, unsigned
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Edge, Form, NodePlan, Plan
from qcompile.targets.plan_fit import plan_misfit

MIXED = """net (float[N,3,8,8] image, float[6,3,3,3] W1, float[6] B1, float[2,6,1,1] W2, float[6,2,1,1] W3,
  float[5,6] W4, float[5] B4, float[5,4] W5) => (float[N,4] y) <float zero = {0}, float six = {6}> {
  [stem] a = Conv(image, W1, B1)  [relu6] b = Clip(a, zero, six)
  [pool] c = GlobalAveragePool(b)  [squeeze] d = Conv(c, W2)  [excite] e = Conv(d, W3)
  [gate] f = HardSigmoid<alpha = 0.2, beta = 0.5>(e)  [scale] g = Mul(b, f)
  [pooled] h = GlobalAveragePool(g)  [flat] i = Flatten(h)  [head] j = Gemm<transB = 1>(i, W4, B4)
  [shifted] k = Relu(j)  [last] l = MatMul(k, W5)  [tail] y = Tanh(l)
}"""


@pytest.fixture(scope="module")
def build(model_of: Callable[..., ModelProto]) -> Callable[[str], QModel]:
    images = {"image": np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)}
    config = Config(w=4, a=4, method="rtn", threads=1)
    return lambda text: compile(model_of(text), config, images).qmodel


@pytest.fixture(scope="module")
def mixed(build: Callable[[str], QModel]) -> QModel:
    return build(MIXED)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_compiler_decides_fits(name: str) -> None:
    for bits in (2, 4, 8):
        made = compiled(NETWORKS[name], CALIBRATE, w=bits, a=bits)
        assert plan_misfit(made.plan, made.graph, made.target) == ""


def test_the_plan_that_is_broken_below_fits(mixed: QModel) -> None:
    assert plan_misfit(mixed.plan, mixed.graph, mixed.target) == ""


def node(name: str, form: Form) -> Callable[[Plan], None]:
    return lambda plan: plan.nodes.update({name: NodePlan(form)})


SIGNED = Grid(-128, 127, "int8")


def quantizer(tensor: str, **change: Any) -> Callable[[Plan], None]:
    key = Edge(tensor)
    return lambda plan: plan.quantizers.update({key: replace(plan.quantizers[key], **change)})


def spec(tensor: str, **change: Any) -> Callable[[Plan], None]:
    key = Edge(tensor)
    return lambda plan: plan.specs.update({key: replace(plan.specs[key], **change)})


def with_quantizer(tensor: str, bits: int = 8) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        plan.groups[tensor], plan.specs[Edge(tensor)] = tensor, ActivationSpec(unsigned(bits))
        plan.quantizers[Edge(tensor)] = Quantizer(unsigned(bits), 0.1, 1 << bits - 1)

    return change


def seen_as(tensor: str, reader: str) -> Callable[[Plan], None]:
    return lambda plan: plan.reads.update({Edge(tensor, reader): Edge(tensor)})


def without_quantizer(tensor: str) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        plan.groups.pop(tensor)
        for part in (plan.specs, plan.quantizers):
            part.pop(Edge(tensor))  # type: ignore[attr-defined]
        plan.reads = {edge: key for edge, key in plan.reads.items() if edge.tensor != tensor}

    return change


def weight(name: str, **change: Any) -> Callable[[Plan], None]:
    return lambda plan: plan.weights.update({name: replace(plan.weights[name], **change)})


def both(*changes: Callable[[Plan], object]) -> Callable[[Plan], None]:
    def change(plan: Plan) -> None:
        for item in changes:
            item(plan)

    return change


BROKEN: list[tuple[Callable[[Plan], Any], str]] = [
    (node("more", Form.FLOAT), "node 'more' is in only one of them"),
    (lambda plan: plan.nodes.pop("tail"), "a unit has a node 'tail', which does not exist"),
    (with_quantizer("none"), "the model has no tensor 'none'"),
    (lambda plan: plan.units.append(replace(plan.units[0], name="u", nodes=())), "unit 'u' has no node"),
    (lambda plan: plan.units.__setitem__(0, replace(plan.units[0], inputs=())), "'stem' has the inputs and outputs"),
    (node("tail", Form.ARITHMETIC), "node 'tail', a Tanh, cannot have the form arithmetic: no integer kernel"),
    (node("scale", Form.ABSORBED), "node 'scale', a Mul, cannot have the form absorbed"),
    (node("scale", Form.CODES), "node 'scale', a Mul, cannot have the form codes"),
    (node("pool", Form.ABSORBED), "'pool', a GlobalAveragePool, cannot have the form absorbed"),
    (
        lambda plan: plan.nodes.update(relu6=NodePlan(Form.COMPUTE, "", 0, 8)),
        "'relu6', a Clip, cannot have the form comp",
    ),
    (node("flat", Form.ARITHMETIC), "'flat', a Flatten, cannot have the form arithmetic"),
    (both(node("relu6", Form.FLOAT)), "the output of 'stem' has no quantizer"),
    (node("relu6", Form.CODES), "'relu6' reads 'a' without a quantizer"),
    (without_quantizer("image"), "'stem' reads 'image' without a quantizer"),
    (with_quantizer("y"), "no node on integers reads or makes 'y'"),
    (both(with_quantizer("i", 4), seen_as("i", "head")), "'flat' moves codes"),
    (spec("b", upper=np.inf), "quantizer 'b' goes beyond the clip that it stands for, 0 to 6"),
    (both(spec("b", grid=SIGNED), quantizer("b", grid=SIGNED, zero_point=-128)), "the codes -128 .. 127 in int8, the"),
    (spec("g", even_zero_point=False), "the zero point of 'g' need not be even, but Mul wants it"),
    (both(spec("f", fixed=None)), "the quantizer of 'f' is not one that an operator dictates"),
    (
        both(spec("h", fixed=Quantizer(unsigned(4), 0.5, 0)), quantizer("h", scale=0.5, zero_point=0)),
        "'h' is one that an operator",
    ),
    (lambda plan: plan.reads.pop(Edge("image", "stem")), "no quantizer is named for 'image' in front of 'stem'"),
    (
        lambda plan: plan.reads.update({Edge("image", "last"): Edge("image")}),
        "no place for a quantizer on 'image' in front of 'last'",
    ),
    (lambda plan: plan.nodes.update(squeeze=replace(plan.nodes["squeeze"], input_bits=6)), "wants inputs of 6 bits"),
    (weight("squeeze", codes=np.zeros((2, 6, 1), np.uint8)), r"'squeeze' has shape \(2, 6, 1\) and axis 0, not \(2, 6"),
    (weight("stem", codes=np.zeros((6, 3, 3, 3), np.uint8)), "weight of 'stem' is another one than the model's"),
    (lambda plan: plan.biases.update(last=np.zeros(4, np.float32)), "node 'last', a MatMul, has a bias"),
    (quantizer("image", scale=1e-38 * 2), "the scales around 'stem' do not suit each other"),
    (lambda plan: plan.biases["stem"].fill(1e20), "the bias of 'stem' does not fit into int32"),
    (quantizer("c", scale=1e-7), "the scale behind 'pool' is 1e-07, its kernel takes"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_rule_is_named(mixed: QModel, change: Callable[[Plan], Any], message: str) -> None:
    plan = copy.deepcopy(mixed.plan)
    change(plan)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(plan_misfit(plan, mixed.graph, mixed.target))
