"""Planned nodes that run on no integer kernel, and float ones that do."""

from __future__ import annotations

import pytest
from audited import EMITTED, audit, qmodel

from qcompile.audit import compare
from qcompile.outcomes import Fused, MissingKernel
from qcompile.quant.plan import Form, NodePlan


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


def test_node_on_no_integer_kernel_is_named_with_its_rule() -> None:
    text = EMITTED.replace("[mean] p = GlobalAveragePool(ad)", "[mean] p = ReduceMean<keepdims = 1>(ad, axes)")
    text = text.replace("float s =", "int64[2] axes = {2, 3}, float s =")
    unknown = "no rule of the emitted file explains it"
    assert audit(qmodel(text)).fused == Fused(3, 2, [MissingKernel("mean", "ReduceMean", unknown)])
    text = EMITTED.replace("GlobalAveragePool(ad)", "GlobalAveragePool(x)")
    (missing,) = audit(qmodel(text)).fused.missing
    assert (missing.node, missing.kernel) == ("mean", "GlobalAveragePool")
    assert missing.rule.endswith("[dequantized-inputs]")


def test_float_node_that_runs_on_integers_is_warned_about() -> None:
    """Whatever the plan says, ONNX Runtime makes an integer kernel of a pool between two quantized tensors."""
    model = qmodel()
    model.plan.nodes["mean"] = NodePlan(Form.FLOAT, "asked for")
    audit(model)
    (text,) = model.journal.warnings
    assert text.startswith("kept float, yet on integer kernels") and text.endswith(": mean")
