"""Every target has a backend, and what its table says is what its files are held against."""

from __future__ import annotations

from dataclasses import replace

from networks import EMIT, RESIDUAL, compiled

from qcompile.backends import BACKENDS, check
from qcompile.targets.schema import Target, known


def test_every_target_has_a_backend() -> None:
    assert BACKENDS.keys() == {Target.load(name).backend for name in known()}


def test_rules_look_at_the_operators_of_the_table() -> None:
    """One table serves placement and rules: without Conv in it no Conv is held against them."""
    target, model = Target.load("ort-cpu"), compiled(RESIDUAL, EMIT)
    assert model.emitted is not None
    for node in model.emitted.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0].startswith("c"):
            node.op_type = "Identity"  # the layer loses its quantizer
            del node.input[1:]
    assert "one-quantizer" in {item.rule for item in check(model.emitted, target)}
    without = replace(target, compute=target.compute - {"Conv"})
    assert "one-quantizer" not in {item.rule for item in check(model.emitted, without)}
