from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import qcompile
from qcompile.passes.use_plan import UsePlan, misfit
from qcompile.quant.plan import Form, NodePlan, Plan

Data = dict[str, NDArray[np.float32]]


@pytest.fixture
def compiled(residual_model: onnx.ModelProto, residual_data: Data) -> qcompile.QModel:
    return qcompile.compile(residual_model, qcompile.Config(w=4, threads=1), residual_data).qmodel


def test_the_plan_of_the_model_fits(compiled: qcompile.QModel) -> None:
    plan = compiled.plan
    compiled.plan = Plan()
    assert UsePlan(plan).run(compiled) == len(plan.nodes)
    assert compiled.plan == plan


def without_a_quantizer(plan: Plan) -> Plan:
    return replace(plan, quantizers={key: value for key, value in plan.quantizers.items() if key != "image"})


def of_another_shape(plan: Plan) -> Plan:
    weight = plan.weights["branch"]
    return replace(plan, weights={**plan.weights, "branch": replace(weight, codes=weight.codes[:4])})


def with_a_weight_of_m128(plan: Plan) -> Plan:
    weight = plan.weights["branch"]
    lowest = replace(weight, bits=8, codes=weight.codes * 0, offset=np.full_like(weight.offset, -128))
    return replace(plan, weights={**plan.weights, "branch": lowest})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda plan: replace(plan, nodes={**plan.nodes, "more": NodePlan(Form.FLOAT)}), "node 'more' is in only one"),
        (lambda plan: replace(plan, groups={**plan.groups, "more": "image"}), "no tensor 'more'"),
        (without_a_quantizer, "no quantizer for 'image'"),
        (lambda plan: replace(plan, weights={}), "no weight for"),
        (of_another_shape, r"the weight of 'branch' has shape \(4, 8, 3, 3\)"),
        (with_a_weight_of_m128, "the weight of 'branch' has integers beyond -127 .. 127"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    compiled: qcompile.QModel, change: Callable[[Plan], Plan], problem: str
) -> None:
    assert misfit(compiled.plan, compiled) == ""
    with pytest.raises(qcompile.InputError, match=problem):
        UsePlan(change(compiled.plan)).run(compiled)
