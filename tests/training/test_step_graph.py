"""A step graph trains what has a gradient, and says so where ONNX Runtime refuses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import NETWORKS
from regions import feeds, whole_region

from qcompile.errors import QCompileError
from qcompile.training import step_graph
from qcompile.training.recipe import ParameterKind, settings_at
from qcompile.training.region import Parameter, UntrainableError
from qcompile.training.step_graph import StepGraph

CHAIN = NETWORKS["chain"]


def test_a_parameter_without_a_gradient_stays_as_it_was() -> None:
    region, values = whole_region(CHAIN, w=4, a=4)
    item = next(item for item in region.model.graph.input if item.name.endswith("/bias"))
    region.model.graph.input.add().CopyFrom(item)
    region.model.graph.input[-1].name = "unread"
    start = np.arange(item.type.tensor_type.shape.dim[0].dim_value, dtype=np.float32)
    region.parameters["unread"] = Parameter(ParameterKind.BIAS, start, "conv1")
    graph = StepGraph(region, threads=1)
    before = graph.state
    for seed in range(3):
        assert np.isfinite(graph.run(feeds(region, values, seed), settings_at(0.3), 1.0))
    np.testing.assert_array_equal(graph.state["unread"], start)
    assert not np.array_equal(graph.state[item.name], before[item.name])


@pytest.mark.parametrize("call", ["__init__", "run"])
def test_what_onnx_runtime_refuses_cannot_be_trained(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise QCompileError("no kernel for it")

    region, values = whole_region(CHAIN, w=4, a=4)
    monkeypatch.setattr(step_graph.InPlace, call, refuse)
    with pytest.raises(UntrainableError, match="no kernel for it"):
        StepGraph(region, threads=1).run(feeds(region, values, 0), settings_at(0.3), 1.0)
