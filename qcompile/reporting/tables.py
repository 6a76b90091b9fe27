"""Views of plan and report as text and tables for the terminal. They compute nothing that the report does not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from qcompile.outcomes import Judged, Outcome, Speed
from qcompile.passmanager import PassRun
from qcompile.quant.plan import Form
from qcompile.reporting.summary import agreement_text, samples_text, shortened, speed_text
from qcompile.targets.schema import Target

Row = Mapping[str, Any]
View = list[Table | str]
FORMS = {
    Form.COMPUTE: "integer kernel, weights",
    Form.ARITHMETIC: "integer kernel",
    Form.CODES: "moves integers",
    Form.ABSORBED: "absorbed by a quantizer",
    Form.FLOAT: "float",
}
IN_FLOAT = FORMS | {
    Form.COMPUTE: "reads quantized, weights",
    Form.ARITHMETIC: "reads and gives quantized",
    Form.CODES: "moves quantized",
}  # of a target without integer kernels
ALONE = FORMS | {Form.COMPUTE: "quantized weights alone"}


def plan_view(nodes: Sequence[Row], quantizers: Sequence[Row], target: str, forms: Mapping[Form, str] = FORMS) -> View:
    """Return the plan: nodes by form, in the words of `forms`, bits, exceptions, and the float nodes with reasons."""
    table = new_table(f"Plan for {target}", "form", "nodes", "operators", "bits", numbers=(1,))
    for form, text in forms.items():
        rows = [row for row in nodes if row["form"] == form]
        if rows:
            bits = _counts(_bits(row) for row in rows if row["form"] == Form.COMPUTE)
            table.add_row(text, str(len(rows)), _counts(row["op"] for row in rows), bits)
    tensors = _counts(f"{row['bits']} bits" for row in sorted(quantizers, key=lambda row: -row["bits"]))
    table.add_row("tensors", str(len(quantizers)), "activations", tensors)
    special = [row for row in nodes if row["form"] == Form.COMPUTE and row["reason"]]
    exceptions = [f"{reason}: {_bits(rows[0])}  {_names(rows)}" for reason, rows in _by_reason(special).items()]
    return [table, *exceptions, *float_view(nodes)]


def float_view(nodes: Sequence[Row]) -> list[str]:
    """Return the nodes that stay float, one line per reason."""
    rows = [row for row in nodes if row["form"] == Form.FLOAT]
    return [
        f"float, {escape(reason)}: {_counts(row['op'] for row in same)}  {_names(same)}"
        for reason, same in _by_reason(rows).items()
    ]


def audit_view(report: Mapping[str, Any], shown: Collection[str] = ()) -> View:
    """Return the audit of the emitted file and the table of before and after.

    Lines about float nodes that were `shown` with the plan are left out.
    """
    audit = report["audit"]
    if not audit:
        return []
    fused = audit["fused"]
    kernels = ", ".join(f"{count} {kind}" for kind, count in audit["kernels"].items())
    lines = [
        f"weights      {_bit_counts(audit['bits']['weights'])}",
        f"activations  {_bit_counts(audit['bits']['activations'])}",
        f"kernels      {fused['integer']} of {fused['planned']} planned nodes run on integer kernels"
        if fused
        else "kernels      float, on quantized values",
        f"             {escape(kernels)}",
        *training_view(report),
        *(line for line in float_view(report["nodes"]) if line not in shown),
    ]
    return [*lines, before_after(audit)]


def training_view(report: Mapping[str, Any]) -> list[str]:
    """Return what was trained, and what was not, one line per reason; nothing without training."""
    pieces = [Outcome(**row) for row in report["training"]]
    if not pieces:
        return []
    better, end = [piece for piece in pieces if piece.trained], pieces[-1]
    last = f", error of the last {end.before:.2g}, then {end.after:.2g}" if end.after is not None else ""
    lines = [f"training     {report['recipe']['method']}: kept for {len(better)} of {len(pieces)} pieces{last}"]
    left = [piece for piece in pieces if not piece.trained]
    for what in dict.fromkeys(piece.reason or piece.what for piece in left):
        names = [piece.piece for piece in left if (piece.reason or piece.what) == what]
        lines.append(f"             {escape(what)}: {escape(', '.join(names))}")
    if names := [piece.piece for piece in pieces if piece.by_heart]:
        lines.append(f"             learnt by heart, so more samples would help: {escape(', '.join(names))}")
    return lines


def before_after(audit: Mapping[str, Any]) -> Table:
    """Return the table of float against emitted file."""
    table = new_table("Before and after", "", "float", "quantized", "", numbers=(1, 2))
    size = audit["size"]
    table.add_row(
        "size", byte_text(size["float"]), byte_text(size["emitted"]), f"{size['emitted'] / size['float']:.3f} of it"
    )
    if speed := audit["speed"]:
        label = f"one run, batch {speed['batch']}, {speed['threads']} thread"
        table.add_row(label, _milliseconds(speed["float"]), _milliseconds(speed["emitted"]), speed_text(Speed(**speed)))
    if top1 := audit["top1"]:
        change = f"{top1['emitted'] - top1['float']:+.2f} points"
        table.add_row(f"top-1, {top1['samples']} samples", f"{top1['float']:.2f} %", f"{top1['emitted']:.2f} %", change)
    if agreement := audit["agreement"]:
        samples = samples_text(Judged(**agreement))
        for name, figures in agreement["outputs"].items():
            table.add_row(f"{escape(name)}, {samples}", "", "", agreement_text(figures))
    return table


def targets_view(targets: Iterable[Target]) -> View:
    """Return the targets: what each is for, and what was proven where."""
    table = new_table("", "--target", "what for", "proven")
    for target in targets:
        table.add_row(*map(escape, (target.name, target.purpose, target.proven)))
    return [table]


def pass_line(run: PassRun) -> str:
    """Return one line about a pass."""
    return (
        f"{run.name:20} {run.changed:5} changes {run.seconds:8.2f} s {run.cpu_seconds:8.2f} s CPU"
        f" {run.peak_bytes / 2**20:8.0f} MiB peak"
    )


def new_table(title: str, *columns: str, numbers: Sequence[int] = ()) -> Table:
    """Return an empty table; columns in `numbers` stand flush right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in numbers else "left", overflow="fold")
    return table


def _by_reason(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["reason"], []).append(row)
    return groups


def _names(rows: Sequence[Row]) -> str:
    return escape(shortened([row["name"] for row in rows]))


def _bits(row: Row) -> str:
    return f"w{row['weight_bits'] or '-'}a{row['input_bits']}"


def _counts(items: Iterable[str]) -> str:
    return escape(", ".join(f"{count} {item}" for item, count in Counter(items).items()))


def _bit_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {bits} bits" for bits, count in counts.items()) or "none"


def byte_text(size: int) -> str:
    """Return a number of bytes as text."""
    return f"{size / 1e6:.3f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms"
