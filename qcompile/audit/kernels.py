"""What the runtime makes of a file: planned nodes that run on no integer kernel, float ones that do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from qcompile.backends import check
from qcompile.emission.emitted import Emitted
from qcompile.outcomes import Fused, MissingKernel
from qcompile.quant.plan import Form, Plan
from qcompile.runtime.fused import GONE, is_integer
from qcompile.targets.schema import Target

UNKNOWN = "no rule of the emitted file explains it"


def fused(plan: Plan, target: Target, emitted: onnx.ModelProto, made: Mapping[str, str]) -> Fused:
    """Look up every node planned as integer among those ONNX Runtime `made`; name the rule that a missing one broke."""
    planned = [name for name, node in plan.nodes.items() if node.form in (Form.COMPUTE, Form.ARITHMETIC)]
    on_codes = Emitted(emitted, target).on_codes()
    missing = [name for name in planned if name not in on_codes and not is_integer(made.get(name, GONE))]
    rules: dict[str, str] = {}
    for violation in check(emitted, target, planned=missing) if missing else []:
        rules.setdefault(violation.node, f"{violation.detail} [{violation.rule}]")
    rows = [MissingKernel(name, made.get(name, GONE), rules.get(name, UNKNOWN)) for name in missing]
    return Fused(len(planned), len(planned) - len(missing), rows)


def unasked(plan: Plan, nodes: Iterable[tuple[str, str]]) -> list[str]:
    """Return the nodes that the plan keeps float and ONNX Runtime quantized.

    Between DequantizeLinear and QuantizeLinear it does so with an Add and, from 1.22 on, with a Conv of float weight.
    """
    kept = {name for name, node in plan.nodes.items() if node.form is Form.FLOAT}
    return [name for name, op_type in nodes if name in kept and is_integer(op_type)]
