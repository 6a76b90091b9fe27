"""Each rule against a plan that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from plans import small_weight

from qcompile.quant.grid import unsigned
from qcompile.quant.params import ActivationSpec, Quantizer
from qcompile.quant.plan import Boundary, Edge, Form, NodePlan, Plan, Unit
from qcompile.quant.plan_check import plan_problem

HALF = Quantizer(unsigned(8), 1 / 256, 0)
FRONT, Q = Edge("x", "conv"), Edge("q")


def example() -> Plan:
    """A plan without a problem: a layer with a narrow input, a gate, a float node."""
    weight = small_weight()
    return Plan(
        nodes={
            "conv": NodePlan(Form.COMPUTE, "", 4, 4),
            "gate": NodePlan(Form.ARITHMETIC),
            "tail": NodePlan(Form.FLOAT),
        },
        groups={"x": "x", "moved": "x", "y": "y", "g": "g"},
        reads={FRONT: FRONT, Edge("moved", "conv"): FRONT},
        specs={
            Edge("x"): ActivationSpec(unsigned(8), lower=0.0, upper=6.0),
            FRONT: ActivationSpec(unsigned(4), lower=0.0, upper=6.0),
            Edge("y"): ActivationSpec(unsigned(8), even_zero_point=True),
            Edge("g"): ActivationSpec(unsigned(8), fixed=HALF),
        },
        quantizers={
            Edge("x"): Quantizer(unsigned(8), float(np.float32(6 / 255)), 0),
            FRONT: Quantizer(unsigned(4), 0.25, 0),
            Edge("y"): Quantizer(unsigned(8), 0.5, 128),
            Edge("g"): HALF,
        },
        weights={"conv": weight},
        biases={"conv": np.array([1.5, -2], np.float32)},
        units=[Unit("stem", ("conv",), ("x",), ("y",)), Unit("head", ("gate",), ("y",), ("g",))],
        capacities={"stem": 48.0},
        boundaries=[Boundary("stem", "head", -48.0, homogeneous=False, inner=True)],
        losses={"stem": 0.1},
        regions=[("stem", "head")],
    )


def test_precision_is_that_of_the_inner_layers() -> None:
    plan = Plan()
    assert plan.precision() == "float"
    plan.nodes = {name: NodePlan(Form.COMPUTE, "first or last", 8, 8) for name in ("first", "last")}
    assert plan.precision() == "w8a8"
    plan.nodes |= {name: NodePlan(Form.COMPUTE, "", 4, 4) for name in ("a", "b", "c")}
    assert plan.precision() == "w4a4"
    plan.nodes["c"] = NodePlan(Form.COMPUTE, "--bits c", 6, 8)
    assert plan.precision() == "mixed (2 w4a4, 1 w6a8)"
    plan.nodes["first"] = NodePlan(Form.COMPUTE, "first or last", 3, 3)  # not at the usual 8
    assert plan.precision() == "mixed (2 w4a4, 1 w3a3, 1 w6a8)"


def test_a_plan_without_a_problem() -> None:
    assert plan_problem(example()) == ""


def node(name: str, **change: Any) -> Callable[[Plan], None]:
    return lambda plan: plan.nodes.update({name: replace(plan.nodes[name], **change)})


def spec(key: Edge, **change: Any) -> Callable[[Plan], None]:
    return lambda plan: plan.specs.update({key: replace(plan.specs[key], **change)})


def quantizer(key: Edge, **change: Any) -> Callable[[Plan], None]:
    return lambda plan: plan.quantizers.update({key: replace(plan.quantizers[key], **change)})


def weight(**change: Any) -> Callable[[Plan], None]:
    return lambda plan: plan.weights.update(conv=replace(plan.weights["conv"], **change))


def bias(*values: float, kind: Any = np.float32) -> Callable[[Plan], None]:
    return lambda plan: plan.biases.update(conv=np.array(values, kind))


def floats(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


BROKEN: list[tuple[Callable[[Plan], Any], str]] = [
    (node("conv", input_bits=0), "node 'conv' of the form compute has 0 input bits"),
    (node("conv", input_bits=9), "has 9 input bits"),
    (node("conv", weight_bits=1), "has 1 weight bits"),
    (node("gate", input_bits=8), "node 'gate' of the form arithmetic has 8 input bits"),
    (node("tail", weight_bits=8), "node 'tail' of the form float has 8 weight bits"),
    (node("conv", weight_bits=0), "has 0 weight bits and a weight"),
    (lambda plan: plan.weights.clear(), "has 4 weight bits and no weight"),
    (lambda plan: plan.groups.update(moved="none"), "'moved' shares the quantizer of 'none'"),
    (lambda plan: plan.groups.update(x="y", y="x"), "which has none of its own"),
    (lambda plan: plan.groups.update(more="more"), "no quantizer for 'more'"),
    (lambda plan: plan.quantizers.pop(FRONT), "no quantizer for 'x' in front of 'conv'"),
    (lambda plan: plan.specs.pop(Edge("y")), "no spec for 'y'"),
    (
        lambda plan: [plan.specs.update({Q: plan.specs[Edge("y")]}), plan.quantizers.update({Q: HALF})],
        "'q' belongs to no tensor",
    ),
    (spec(FRONT, grid=unsigned(3)), "'conv' wants inputs of 4 bits, the quantizer of 'x' has 3"),
    (lambda plan: plan.reads.update({FRONT: Edge("x")}), "'x' in front of 'conv' belongs to no tensor"),
    (lambda plan: plan.reads.update({Edge("y", "conv"): FRONT}), "on 'y' in front of 'conv', which is none of this"),
    (lambda plan: plan.reads.update({Edge("x", "tail"): FRONT}), "no place for a quantizer on 'x' in front of 'tail'"),
    (spec(Edge("y"), grid=replace(unsigned(8), high=511)), "is to have 9 bits"),
    (spec(Edge("y"), grid=replace(unsigned(8), low=-1, high=254)), "is to have the codes -1 .. 254 in uint8"),
    (spec(Edge("y"), lower=1.0), "do not hold 0"),
    (spec(Edge("y"), lower=0.0, upper=0.0), "do not hold 0"),
    (spec(Edge("y"), lower=float("nan")), "do not hold 0"),
    (spec(Edge("g"), fixed=Quantizer(unsigned(4), 0.1, 0)), "fixed ones 0 .. 15 in uint8"),
    (quantizer(Edge("y"), grid=unsigned(4), zero_point=2), "'y' has the codes 0 .. 15 in uint8, its spec 0 .. 255"),
    (quantizer(Edge("y"), scale=0.0), "'y' has the scale 0.0"),
    (quantizer(Edge("y"), scale=-0.5), "has the scale -0.5"),
    (quantizer(Edge("y"), scale=float("nan")), "has the scale nan"),
    (quantizer(Edge("y"), scale=float("inf")), "has the scale inf"),
    (quantizer(Edge("y"), scale=1e-46), "has the scale 1e-46"),
    (quantizer(Edge("y"), scale=1e38), r"has the scale 1e\+38"),
    (quantizer(Edge("y"), zero_point=256), "zero point 256: not one of 0 .. 255"),
    (quantizer(FRONT, zero_point=-1), "zero point -1: not one of 0 .. 15"),
    (quantizer(Edge("y"), zero_point=127), "its kernel wants an even one"),
    (quantizer(Edge("x"), scale=0.03), "beyond its bounds, 0 and 6"),
    (quantizer(FRONT, zero_point=1), "beyond its bounds"),
    (quantizer(Edge("g"), zero_point=1), "differs from the one that the operator dictates"),
    (lambda plan: plan.weights.update(other=plan.weights["conv"]), "weight 'other' belongs to no node"),
    (weight(bits=3), "weight 'conv' has 3 bits, its node 4"),
    (weight(axis=2), "has no axis 2"),
    (weight(codes=np.zeros((2, 6), np.int8)), "has codes int8"),
    (weight(scale=np.ones(2)), r"has scale float64 \[2\], not float32 \[2\]"),
    (weight(scale=floats(0.1)), r"has scale float32 \[1\]"),
    (weight(scale=floats(0.1, 0)), "not a positive float32"),
    (weight(scale=floats(0.1, np.inf)), "not a positive float32"),
    (weight(scale=floats(0.1, 3e38)), "not a positive float32"),
    (weight(scale=floats(0.1, np.nan)), "not a positive float32"),
    (weight(step=np.array([1, 0], np.int8)), "a step that is not above 0"),
    (weight(step=np.array([[1, 1]], np.int8)), "has step int8"),
    (weight(codes=np.full((2, 6), 16, np.uint8)), "has the code 16: not one of 0 .. 15"),
    (weight(offset=np.array([-128, -15], np.int8)), r"integers beyond -127 .. 127"),
    (lambda plan: plan.biases.update(gate=floats(1)), "bias 'gate' belongs to no weight"),
    (bias(1.0, float("nan")), "holds NaN or infinity"),
    (bias(1.0), r"is float32 \[1\], not float32 \[2\]"),
    (bias(1, 2, kind=np.float64), r"is float64"),
    (lambda plan: plan.units.append(plan.units[0]), "unit 'stem' is there 2 times"),
    (lambda plan: plan.units.append(Unit("more", ("conv",), (), ())), "node 'conv' is there 2 times"),
    (lambda plan: plan.units.append(Unit("more", ("none",), (), ())), "'none', which does not exist"),
    (lambda plan: plan.regions.append(("stem",)), "unit of a region 'stem' is there 2 times"),
    (lambda plan: plan.regions.append(()), "a region has no unit"),
    (lambda plan: plan.losses.update(none=0.1), "there is no unit 'none'"),
    (lambda plan: plan.capacities.update(none=1.0), "there is no unit 'none'"),
    (lambda plan: plan.boundaries.append(replace(plan.boundaries[0], second="none")), "there is no unit 'none'"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_a_broken_rule_is_named(change: Callable[[Plan], Any], message: str) -> None:
    plan = example()
    change(plan)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(plan_problem(plan))
