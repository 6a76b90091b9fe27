"""Validation of an emitted model: what it finds out, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from audited import EMITTED, FLOAT, audit, qmodel
from onnx import parser

from qcompile.audit import compare
from qcompile.errors import EmissionError, QCompileError
from qcompile.outcomes import Fused
from qcompile.passes.validate import Validate


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans made up by hand cannot be run: the layers' own errors are given."""
    errors = {"conv": 12.0, "gemm": 30.0, "mean": float("inf")}
    monkeypatch.setattr(compare, "layer_errors", lambda *_, **__: errors)


def test_audit_of_a_good_file() -> None:
    found = audit(qmodel())
    assert found.fused == Fused(planned=3, integer=3)
    assert found.kernels["QLinearConv"] == 1 and found.kernels["QGemm"] == 1
    assert found.bits == {"weights": {}, "activations": {"4": 1, "8": 2}}
    assert found.float_nodes == [] and found.top1 is None and found.worst_layers == []
    agreement, unoptimized = found.agreement, found.unoptimized
    assert agreement is not None and unoptimized is not None and found.speed is not None
    assert agreement.samples == 5 and unoptimized.samples == 5
    # Weights are exact; a step of 1/32 on values around 0.6 leaves about 30 dB after the mean over 16 pixels.
    assert agreement.outputs["logits"]["sqnr_db"] > 15
    # The scales are powers of two and the zero points even, so integer and float arithmetic round alike.
    assert unoptimized.outputs["logits"]["largest_difference"] < 1e-5  # float32 sums
    assert found.speed.rounds >= 1 and found.speed.speedup > 0
    assert found.size.float == parser.parse_model(FLOAT).ByteSize()


def test_models_that_do_not_fit_side_by_side_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    together = audit(qmodel())
    monkeypatch.setattr(compare, "SIDE_BY_SIDE", 0)
    apart = audit(qmodel())
    assert replace(apart, speed=None) == replace(together, speed=None)
    assert apart.speed is not None and apart.speed.low <= apart.speed.speedup <= apart.speed.high


def test_broken_rule_is_an_error() -> None:
    text = EMITTED.replace("int8[2,2,1,1] w = {2, -4, 3, 4}", "uint8[2,2,1,1] w = {2, 4, 3, 4}")
    with pytest.raises(EmissionError, match=r"conv: its weight is uint8, not int8 \[signed-weights\]"):
        Validate().run(qmodel(text))


def test_nothing_emitted() -> None:
    with pytest.raises(QCompileError, match="no emitted model"):
        Validate().run(replace(qmodel(), emitted=None))
