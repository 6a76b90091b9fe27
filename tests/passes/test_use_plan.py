from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import qcompile
from qcompile.passes.use_plan import UsePlan
from qcompile.quant.plan import Form, NodePlan, Plan

Data = dict[str, NDArray[np.float32]]


@pytest.fixture
def compiled(residual_model: onnx.ModelProto, residual_data: Data) -> qcompile.QModel:
    return qcompile.compile(residual_model, qcompile.Config(w=4, method="rtn", threads=1), residual_data).qmodel


def test_the_plan_of_the_model_fits(compiled: qcompile.QModel) -> None:
    plan = compiled.plan
    compiled.plan = Plan()
    assert UsePlan(plan).run(compiled) == len(plan.nodes)
    assert compiled.plan == plan


def test_a_plan_that_does_not_fit_is_refused(compiled: qcompile.QModel) -> None:
    plan = compiled.plan
    more = replace(plan, nodes={**plan.nodes, "more": NodePlan(Form.FLOAT)})
    with pytest.raises(
        qcompile.InputError, match="the plan does not fit the model: node 'more' is in only one of them"
    ):
        UsePlan(more).run(compiled)
    no_weights = replace(plan, weights={})
    with pytest.raises(qcompile.InputError, match="8 weight bits and no weight; make it again with --save-plan"):
        UsePlan(no_weights).run(compiled)
