from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

from rich.console import Console

from qcompile.outcomes import Outcome
from qcompile.passmanager import PassRun
from qcompile.reporting.tables import View, audit_view, float_view, pass_line, plan_view, training_view


def node(name: str, op: str, form: str, reason: str = "", bits: int = 0) -> dict[str, Any]:
    return {"name": name, "op": op, "form": form, "reason": reason, "weight_bits": bits, "input_bits": bits}


NODES = [
    node("stem", "Conv", "compute", "first or last", 8),
    *(node(f"conv{index}", "Conv", "compute", "", 4) for index in range(3)),
    node("add", "Add", "arithmetic"),
    *(node(f"act[{index}]", "HardSwish", "float", "no integer kernel") for index in range(6)),
    node("soft", "Softmax", "float", "moves [bold]float[/bold] values"),
]
FIGURES = {"kind": "classes", "same": 1.0, "foreground": None, "sqnr_db": 30.0, "cosine": 0.99, "least_cosine": 0.98}
REPORT: dict[str, Any] = {
    "nodes": NODES,
    "training": [],
    "audit": {
        "bits": {"weights": {"4": 3, "8": 1}, "activations": {}},
        "fused": {"planned": 5, "integer": 4, "missing": []},
        "kernels": {"QLinearConv": 4, "HardSwish": 6},
        "size": {"float": 4_000_000, "emitted": 1_000_000},
        "speed": {
            "float": 0.004,
            "emitted": 0.001,
            "speedup": 4.0,
            "low": 3.9,
            "high": 4.1,
            "rounds": 9,
            "batch": 1,
            "threads": 1,
        },
        "top1": {"samples": 100, "float": 90.0, "emitted": 88.0},
        "agreement": {"samples": 6, "held_back": 6, "outputs": {"y": FIGURES}},
    },
}


def shown(view: View) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(*view, sep="\n", soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plan_names_forms_bits_exceptions_and_reasons() -> None:
    text = shown(plan_view(NODES, [{"tensor": "x", "bits": 8}, {"tensor": "x@4", "bits": 4}], "ort-cpu"))
    assert "4 Conv" in text and "1 w8a8, 3 w4a4" in text and "1 8 bits, 1 4 bits" in text
    assert "first or last: w8a8  stem" in text
    assert "float, no integer kernel: 6 HardSwish  act[0], act[1], act[2], act[3] and 2 more" in text
    assert "moves [bold]float[/bold] values" in text  # names and reasons are text, not markup


def test_audit_shows_before_and_after() -> None:
    text = shown(audit_view(REPORT))
    for part in ("3 x 4 bits, 1 x 8 bits", "4 of 5 planned", "4 QLinearConv", "4.000 MB", "1.000 MB", "4.00x"):
        assert part in text
    for part in ("90.00 %", "88.00 %", "-2.00 points", "6 held-back samples", "SQNR 30.0 dB"):
        assert part in text


def test_float_nodes_are_listed_once() -> None:
    line = "float, no integer kernel: 6 HardSwish"
    assert line in shown(audit_view(REPORT))
    assert line not in shown(audit_view(REPORT, float_view(NODES)))


def test_without_validation_there_is_no_audit() -> None:
    assert audit_view({"audit": {}}) == []


def test_what_was_not_measured_is_left_out() -> None:
    audit = {**REPORT["audit"], "speed": None, "top1": None, "agreement": None}
    text = shown(audit_view({**REPORT, "audit": audit}))
    assert "size" in text and "top-1" not in text and "one run" not in text


def test_pass_line() -> None:
    assert "12 changes     1.50 s     2.00 s CPU      100 MiB peak" in pass_line(
        PassRun("calibrate", 12, 1.5, 2.0, 100 << 20)
    )


def test_training_names_what_was_left_and_why() -> None:
    report = {
        "recipe": {"method": "qdrop"},
        "training": [
            asdict(Outcome("stem", "not trained", reason="no rule for Round")),
            asdict(Outcome("block", "not better after training: left as it was", before=0.2, after=0.2)),
            asdict(Outcome("head", "trained", True, before=0.125, after=0.0625, fitted=0.03)),
        ],
    }
    assert training_view(report) == [
        "training     qdrop: kept for 1 of 3 pieces, error of the last 0.12, then 0.062",
        "             no rule for Round: stem",
        "             not better after training: left as it was: block",
        "             learnt by heart, so more samples would help: head",
    ]
    assert training_view({"recipe": {}, "training": []}) == []
