"""Accuracy on labelled samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audited import audit, dataset, qmodel
from onnx.reference import ReferenceEvaluator

from qcompile.audit import compare


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


def test_top1_of_both() -> None:
    model = qmodel()
    assert model.emitted is not None
    answers = ReferenceEvaluator(model.source)
    labels = np.array([answers.run(None, feeds)[0].argmax() for feeds in dataset(20).batches(1)])  # type: ignore[union-attr]
    labels[:5] = (labels[:5] + 1) % 3  # five of twenty wrong on purpose
    found = audit(replace(model, evaluation=dataset(20, labels))).top1
    assert found is not None and found.samples == 20 and found.float == 75.0
    assert abs(found.emitted - 75.0) <= 10  # two samples may be close calls
