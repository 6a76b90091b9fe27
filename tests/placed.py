"""Placement of tiny networks, for the tests of the passes that decide it."""

from __future__ import annotations

from typing import Any

from networks import (
    PLACE,
    compiled,
)

from qcompile import Plan
from qcompile.quant.plan import Form

W4A4: dict[str, Any] = {"w": 4, "a": 4}
BODY = "float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B"  # conv, something, conv


def placed(text: str, **settings: Any) -> Plan:
    return compiled(text, PLACE, **settings).plan


def forms(plan: Plan) -> dict[str, str]:
    return {name: str(node.form) for name, node in plan.nodes.items()}


def bits(plan: Plan) -> dict[str, int]:
    """Return the bits of each tensor's own quantizer by its name, those in front of readers as tensor@bits."""
    return {f"{plan.stands_on(key)}@{spec.bits}" if key.reader else key.tensor: spec.bits
            for key, spec in plan.specs.items()}  # fmt: skip


def reason(plan: Plan, node: str) -> str:
    assert plan.form(node) is Form.FLOAT
    return plan.nodes[node].reason


def between(nodes: str, *, constants: str = "", outputs: str = "", inputs: str = "", **settings: Any) -> Plan:
    """Place two convolutions, A and B, with `nodes` between tensors a and b."""
    return placed(
        f"net ({BODY}{inputs}) => (float[N,4,P,Q] y{outputs}) <{constants}>"
        f"{{ [first] a = Conv(x, A)  {nodes}  [last] y = Conv(b, B) }}",
        **settings,
    )
