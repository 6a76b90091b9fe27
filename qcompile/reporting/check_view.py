"""The terminal's view of a check: one screen, and what a rule says of itself."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from qcompile.checking import Check
from qcompile.checking.result import Found, Operators, Verdict
from qcompile.reporting.summary import agreement_text, shortened, speed_text
from qcompile.reporting.tables import View, byte_text, new_table

DETAILS = 2  # of one rule that are shown


def check_view(found: Check) -> View:
    """Return what is quantized and how, what the runtime says, size and agreement, and the findings by rule."""
    made = f" by {found.producer}" if found.producer else ""
    lines = [f"{escape(found.file)}: {found.form}{escape(made)}, opset {found.opset}, {size_text(found)}"]
    return [
        *lines,
        operator_table(found.operators),
        *verdict_lines(found.verdict),
        *figures(found),
        *finding_lines(found),
    ]


def operator_table(rows: list[Operators]) -> Table:
    """Return the table of operators by the codes that they read."""
    table = new_table("", "operator", "nodes", "weights", "activations", "on integers", numbers=(1, 4))
    for row in rows:
        kinds = (str(kind) if kind else "" for kind in (row.weight, row.data))
        table.add_row(escape(row.op), str(row.nodes), *kinds, "?" if row.integer is None else str(row.integer))
    return table


def verdict_lines(verdict: Verdict | None) -> View:
    """Return what an installed runtime says itself."""
    if verdict is None:
        return []
    if verdict.refused:
        return [f"{verdict.runtime} does not load it"]
    kernels = ", ".join(f"{count} {kind}" for kind, count in verdict.kernels.items())
    integer = verdict.layers - len(verdict.floating)
    return [f"{verdict.runtime}: {integer} of {verdict.layers} quantized layers on integers; {escape(kernels)}"]


def size_text(found: Check) -> str:
    """Return the size of the file, and its share of that of the float model."""
    share = f", {found.bytes / found.float_bytes:.3f} of the float model" if found.float_bytes else ""
    return f"{byte_text(found.bytes)}{share}"


def figures(found: Check) -> View:
    """Return the width of sums, and agreement and speed where they were measured."""
    lines = [f"sums need {found.accumulator_bits} of 32 bits at most"] if found.accumulator_bits else []
    for what, compared in (("float model", found.agreement), ("file without optimizations", found.unoptimized)):
        if compared is not None:
            start = f"against the {what}, {compared.samples} samples"
            lines += [f"{escape(name)} {start}: {agreement_text(row)}" for name, row in compared.outputs.items()]
    return [*lines, *([f"speed against the float model: {speed_text(found.speed)}"] if found.speed else [])]


def finding_lines(found: Check) -> list[str]:
    """Return two lines for each rule that is broken: what it is, and where."""
    return [line for first, same in found.by_code() for line in rule_lines(first, same)]


def rule_lines(first: Found, same: list[Found]) -> list[str]:
    """Return what a rule says, and the places where it is broken: those that are wrong in the same way together."""
    lines = [f"{first.code} {first.severity}: {escape(first.title)} ({len(same)})"]
    for detail in dict.fromkeys(item.detail for item in same):
        nodes = [item.node for item in same if item.detail == detail and item.node]
        lines.append(f"      {escape(': '.join(filter(None, (shortened(nodes), detail))))}")
    more = len(lines) - 1 - DETAILS
    return lines if more <= 0 else [*lines[: 1 + DETAILS], f"      and {more} more like these (--json has them all)"]


def conclusion(found: Check) -> str:
    """Return one line: how many findings of what, and how to read more."""
    faults = found.faults
    if not faults:
        notes = len(found.findings)
        return f"{found.file}: clean for {found.target}" + (f", {counted(notes, 'note')}" if notes else "")
    codes = list(dict.fromkeys(item.code for item in faults))
    wrong = sum(item.severity == "wrong" for item in faults)
    kinds = ", ".join(f"{count} {kind}" for kind, count in (("wrong", wrong), ("slow", len(faults) - wrong)) if count)
    more = f"qcompile check --explain {codes[0]} says more"
    return f"{found.file}: {counted(len(faults), 'finding')} for {found.target} ({kinds}); {more}"


def counted(count: int, noun: str) -> str:
    """Return a number of things as text."""
    return f"{count} {noun}{'s' if count != 1 else ''}"
