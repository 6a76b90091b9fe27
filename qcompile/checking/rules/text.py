"""What rules say of themselves: on the terminal, and in docs/rules.md."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill
from typing import Final

from qcompile.checking.rules import Rule

WIDTH: Final = 120
SEVERITIES: Final = {
    "wrong": "wrong: refused, or other numbers than the file says",
    "slow": "slow: float where integers could be, or needless work",
    "note": "note: true, and maybe meant so; no finding",
}


def explained(rule: Rule) -> str:
    """Return all that is to be said about a rule, as plain text."""
    head = [f"{rule.code}: {rule.title}", f"{SEVERITIES[rule.severity]} (on {', '.join(rule.runtimes)})"]
    return "\n\n".join(["\n".join(head), fill(rule.why, WIDTH), fill(f"Mend: {rule.mend}", WIDTH)])


def section(rule: Rule) -> str:
    """Return the same as a section of docs/rules.md."""
    head = f"### {rule.code}: {rule.title}"
    facts = f"*{rule.severity}* · {', '.join(rule.runtimes)}"
    return "\n\n".join([head, facts, fill(rule.why, WIDTH), fill(f"Mend: {rule.mend}", WIDTH)])


def document(rules: Iterable[Rule]) -> str:
    """Return the sections of all rules, in the order of their codes."""
    return "\n\n".join(section(rule) for rule in sorted(rules, key=lambda rule: rule.code)) + "\n"
