"""What the plan says about a file."""

from __future__ import annotations

import pytest
from audited import audit, qmodel

from qcompile.audit import compare
from qcompile.outcomes import FloatNode
from qcompile.quant.plan import Form, NodePlan


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


def test_float_nodes_have_reasons() -> None:
    model = qmodel()
    model.plan.nodes["gemm"] = NodePlan(Form.FLOAT, "asked for")
    del model.plan.nodes["flatten"]
    assert audit(model).float_nodes == [
        FloatNode("flatten", "Flatten", "no pass has placed it"),
        FloatNode("gemm", "Gemm", "asked for"),
    ]
