"""Differentiation rules by operator, and the errors of those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from qcompile.autodiff.operators import Value
from qcompile.autodiff.tape import Node, Tape
from qcompile.errors import InputError

Gradients: TypeAlias = Value | Sequence[Value | None] | None
Rule: TypeAlias = Callable[..., Gradients]
Lowering: TypeAlias = Callable[[Tape, Node], None]
Rules: TypeAlias = dict[tuple[str, str], Rule]  # (domain, operator) -> rule

RULES: Rules = {}  # for any provider: standard operators, NCHW
LOWERINGS: dict[tuple[str, str], Lowering] = {}


class NoGradientRule(InputError):  # noqa: N818  (the rule is what is missing)
    """A node between the trainable tensors and the loss cannot be differentiated: its region cannot be trained."""

    @classmethod
    def of(cls, node: Node, reason: str = "it has no rule") -> NoGradientRule:
        """Name the node, its operator and the reason."""
        operator = f"{node.domain}.{node.op}" if node.domain else node.op
        return cls(
            f"{operator} cannot be differentiated: {reason}",
            where=f"node {node.name!r}, which makes {next(filter(None, node.outputs), '')!r}",
            remedy="end the trained region before this node, or add a rule in qcompile/autodiff/rules",
        )


class UnknownFormError(Exception):
    """Raised by a rule that does not cover the form of a node; the sweep makes it a NoGradientRule."""


def vjp(*operators: str, domain: str = "", rules: Rules = RULES) -> Callable[[Rule], Rule]:
    """Register a vector-Jacobian product for operators of one family.

    The rule is called with the tape, the node, and the gradient of each of its outputs (None where nothing reads it).
    It returns the gradients of the node's inputs, in order; None is a zero, and inputs left out at the end are zeros.
    A node of one input may return its gradient alone. What nobody needs is swept out later, so a rule need not ask.

    Another set of forms for the same operators is another dictionary: `{**RULES, **faster}`.
    """

    def register(rule: Rule) -> Rule:
        rules.update({(domain, operator): rule for operator in operators})
        return rule

    return register


def lowering(operator: str, domain: str) -> Callable[[Lowering], Lowering]:
    """Register how an operator that ONNX does not have is written with those it has."""

    def register(lower: Lowering) -> Lowering:
        LOWERINGS[domain, operator] = lower
        return lower

    return register


def attribute(node: Node, name: str, default: Any) -> Any:
    """Return an attribute of `node`, or what the operator's specification says it is when absent."""
    return node.attributes.get(name, default)
