"""Rules and ONNX Runtime on random quantized graphs: neither may say what the other one denies."""

from __future__ import annotations

import onnx
from hypothesis import HealthCheck, given, settings
from quantized_graphs import quantized_models
from rule_examples import MEASURED

from qcompile.checking.graph import QuantizedFile
from qcompile.checking.kernels import Kernels
from qcompile.checking.rules import RULES

MISSED = [rule for rule in RULES.values() if rule.kernels == "missed" and "ort-cpu" in rule.runtimes]
WEIGHTS_ALONE = "MatMulNBits"  # reads weights as codes and activations in float; where it is made, no rule says


@MEASURED
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(quantized_models())
def test_rules_and_runtime_agree(model: onnx.ModelProto) -> None:
    file = QuantizedFile(model)
    kernels = Kernels(file)
    if kernels.verdict.refused:  # the file as a whole: no node says anything
        return
    found = {node: rule.code for rule in MISSED for node, _ in rule.find(file)}
    made = kernels.operators
    denied = {node: code for node, code in found.items() if kernels.integer.get(node) and made[node] != WEIGHTS_ALONE}
    assert denied == {}, "a rule says that these run in float: they do not"
    assert set(kernels.verdict.floating) - found.keys() == set(), "these run in float, and no rule says why"
