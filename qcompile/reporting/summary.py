"""The report: everything that is known about one compilation, as plain JSON values (schema.json)."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import onnx

from qcompile.config import recipe
from qcompile.errors import pattern
from qcompile.passmanager import PassRun
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan, region_name
from qcompile.runtime.agreement import differs
from qcompile.runtime.outputs import Kind
from qcompile.versions import version_of

SCHEMA_VERSION = 1
ENOUGH_SAMPLES = 256
EXACT = 35.0  # dB that a layer may err by itself without being worth more bits
WIDE = 1.2  # upper quartile of measured speeds by the lower: beyond it the spread is told
BY_HEART = 2.0  # times the error on the samples of training that a region has on others: it has learnt those by heart
LIBRARIES = ("qcompile", "onnx", "onnxruntime", "numpy")


def build_report(model: QModel, runs: Sequence[PassRun], name: str = "") -> dict[str, Any]:
    """Return the report of a model whose passes have run; `name` is the file it came from."""
    found = audit(model)
    return {
        "schema": SCHEMA_VERSION,
        "verdict": verdict(model, found),
        "warnings": warnings(model, found),
        "environment": environment(),
        "model": {"name": name, "opset": _opset(model.source)},
        "target": {"name": model.target.name, "opset": model.target.opset, "runtime": model.target.runtime},
        "recipe": recipe(replace(model.config, method=model.config.chosen_method)),
        "data": data_facts(model),
        "audit": found,
        "nodes": node_rows(model),
        "units": unit_rows(model.plan),
        "boundaries": boundary_rows(model.plan),
        "regions": region_rows(model),
        "quantizers": quantizer_rows(model),
        "weights": weight_rows(model),
        "passes": [asdict(run) for run in runs],
        "journal": [entry for entry in model.journal.entries if entry["what"] != "audit"],
    }


def environment() -> dict[str, Any]:
    """Return the versions and the machine that the report was made with."""
    return {
        **{library: version_of(library) for library in LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
    }


def data_facts(model: QModel) -> dict[str, Any]:
    """Return where the samples come from and how many serve what."""
    return {
        "source": model.data.source if model.data else "",
        "samples": model.data.count if model.data else 0,
        "held_back": model.held_back.count if model.held_back else 0,
        "evaluation": model.evaluation.count if model.evaluation else 0,
        "first_batch": first_batch(model),
    }


def node_rows(model: QModel) -> list[dict[str, Any]]:
    """Return one row per node of the normalised graph: what was decided about it, and why."""
    operators = {node.name: node.op for node in model.graph.nodes}
    return [
        {"name": name, "op": operators[name], **asdict(node), "form": str(node.form)}
        for name, node in model.plan.nodes.items()
    ]


def unit_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return one row per unit; capacity and loss are None where nothing scored it."""
    return [
        {**asdict(unit), "capacity": plan.capacities.get(unit.name), "loss": plan.losses.get(unit.name)}
        for unit in plan.units
    ]


def boundary_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return one row per pair of adjacent units that was scored, and whether it was fused."""
    fused = {pair for region in plan.regions for pair in pairwise(region)}
    return [{**asdict(item), "fused": (item.first, item.second) in fused} for item in plan.boundaries]


def region_rows(model: QModel) -> list[dict[str, Any]]:
    """Return one row per region: its units, its relative error on held-back samples before and after training, and on
    as many samples that it was trained on.

    Where training did not make it better, `trained` is false and the plan has its correction alone, or what was there.
    """
    trained = {entry["unit"]: entry for entry in model.journal.by("reconstruct") if "unit" in entry}
    rows = []
    for units in model.plan.regions or [(unit.name,) for unit in model.plan.units]:
        entry = trained.get(region_name(units), {})
        errors = {key: entry.get(key) for key in ("before", "after", "fitted")}
        rows.append({"units": list(units), **errors, "trained": entry.get("trained", False)})
    return rows


def by_heart(region: Mapping[str, Any]) -> bool:
    """Say whether a region's row, or its entry in the journal, shows that it has learnt its samples by heart."""
    return region.get("fitted") is not None and region["after"] > BY_HEART * region["fitted"]


def quantizer_rows(model: QModel) -> list[dict[str, Any]]:
    """Return one row per activation quantizer: bits, and its numbers once there are any."""
    rows = []
    for key, spec in model.plan.specs.items():
        found = model.plan.quantizers.get(key)
        row: dict[str, Any] = {"tensor": key, "bits": found.bits if found else spec.bits}
        if found:
            row |= {"scale": float(found.scale), "zero_point": int(found.zero_point)}
            row |= {"low": float(found.low), "high": float(found.high)}
        rows.append(row)
    return rows


def weight_rows(model: QModel) -> list[dict[str, Any]]:
    """Return one row per quantized weight."""
    return [
        {
            "node": name,
            "bits": weight.bits,
            "shape": list(weight.codes.shape),
            "axis": weight.axis,
            "smallest_scale": float(weight.scale.min()),
            "largest_scale": float(weight.scale.max()),
        }
        for name, weight in model.plan.weights.items()
    ]


def audit(model: QModel) -> dict[str, Any]:
    """Return what validation found out about the emitted file; empty if it did not run."""
    entries = [entry for entry in model.journal.by("validate") if entry["what"] == "audit"]
    return {key: value for key, value in entries[-1].items() if key not in ("pass", "what")} if entries else {}


def warnings(model: QModel, found: Mapping[str, Any]) -> list[str]:
    """Return what the user should know before using the file, one line each; `found` is the audit."""
    texts = [entry["text"] for entry in model.journal.entries if entry["what"] == "warning"]
    if model.config.random_data:
        texts.append("calibrated on random data: the ranges, and with them the accuracy, mean nothing")
    if (speed := found.get("speed")) and speed["speedup"] < 1:
        why = "; see the float nodes for why" if found["float_nodes"] else ""
        texts.append(f"the file is slower than its float model: {speed_text(speed)}{why}")
    if text := difference_text(outputs_of(found)):
        texts.append(f"{text}{worst_text(found)}; {advice(model, found)}")
    texts += training_warnings(training_rows(model))
    for row in found.get("fused", {}).get("missing", []):
        texts.append(f"node {row['node']!r} should run on an integer kernel, but does not: {row['rule']}")
    return texts


def outputs_of(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the figures of agreement of every output; `found` is the audit."""
    return dict((found.get("agreement") or {}).get("outputs") or {})


def distance(figures: Mapping[str, Any]) -> tuple[bool, float]:
    """Return what sorts outputs by agreement, the farthest from the float model's first."""
    sqnr = figures["sqnr_db"]
    return not differs(figures), sqnr if sqnr is not None else math.inf


def difference_text(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which outputs are far from the float model's, the farthest with its figures; "" if none is."""
    far = sorted(
        (name for name, figures in outputs.items() if differs(figures)), key=lambda name: distance(outputs[name])
    )
    if not far:
        return ""
    first = f"{far[0]!r} differs much from the float model ({agreement_text(outputs[far[0]])})"
    return f"{first}, and so do {shortened([repr(name) for name in far[1:]])}" if len(far) > 1 else first


def training_rows(model: QModel) -> list[dict[str, Any]]:
    """Return what became of each piece that was to be trained."""
    return [entry for entry in model.journal.by("reconstruct") if "unit" in entry]


def training_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what training left out, one line per reason, and whether it was of use at all."""
    texts = []
    for reason in dict.fromkeys(row["reason"] for row in rows if "reason" in row):
        names = [row["unit"] for row in rows if row.get("reason") == reason]
        texts.append(f"{len(names)} of {len(rows)} pieces were not trained: {reason} ({shortened(names)})")
    if rows and not any(row["trained"] or "reason" in row for row in rows):
        texts.append("training made no piece better; try more samples, or --effort max")
    return texts


def training_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the verdict says about training: nothing, unless pieces were left out or none was kept."""
    kept, skipped = sum(row["trained"] for row in rows), sum("reason" in row for row in rows)
    if rows and not kept:
        return f"NOTHING TRAINED (0 of {len(rows)} pieces kept)"
    return f"{skipped} of {len(rows)} pieces NOT TRAINED" if skipped else ""


def shortened(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def advice(model: QModel, found: Mapping[str, Any]) -> str:
    """Return what to try next for accuracy, most promising first, in flags that can be copied."""
    config, steps = model.config, []
    names = [row["node"] for row in found.get("worst_layers", []) if row["sqnr_db"] < EXACT]
    worst = [model.plan.nodes[name] for name in names]
    wide = [name for name, node in zip(names, worst) if node.weight_bits in (0, 8) and node.input_bits == 8]
    narrow = [name for name in names if name not in wide]
    if config.chosen_method == "rtn" and not config.random_data and min(config.w, config.a) < 8:
        steps.append("--method mrecg")
    if narrow:
        steps.append(f"--bits {shlex.quote(pattern(narrow) + '=8,8')}")
    if wide:
        steps.append(f"--keep-float {shlex.quote(pattern(wide))}")
    steps += [f"--{name} {min(8, bits + 2)}" for name, bits in (("w", config.w), ("a", config.a)) if bits < 8]
    if model.data is not None and (model.data.count < ENOUGH_SAMPLES or any(map(by_heart, region_rows(model)))):
        steps.append(f"more samples than {model.data.count}")
    if config.w == config.a == 8:
        steps.append(f"--calibration-method {'max' if config.calibration_method == 'mse' else 'mse'}")
    return f"try {', or '.join(steps)}"


def verdict(model: QModel, found: Mapping[str, Any]) -> str:
    """Return one line: what came out, in size, speed and accuracy."""
    parts = [f"{model.plan.precision()} for {model.target.name}"]
    if size := found.get("size"):
        parts.append(f"{100 * size['emitted'] / size['float']:.0f} % of the float size")
    if speed := found.get("speed"):
        text = speed_text(speed)
        parts.append(f"{text} the float speed" if speed["speedup"] >= 1 else f"SLOWER than float: {text}")
    if top1 := found.get("top1"):
        parts.append(f"top-1 {top1['emitted']:.2f} % (float {top1['float']:.2f} %, {top1['samples']} samples)")
    elif outputs := outputs_of(found):
        name = min(outputs, key=lambda name: distance(outputs[name]))
        most = f", the farthest of {len(outputs)}" if len(outputs) > 1 else ""
        judged = found["agreement"]
        few = f" ({samples_text(judged)})" if judged["held_back"] < judged["samples"] else ""
        parts.append(f"{agreement_text(outputs[name])} on {name!r}{most}{few}")
    if text := training_text(training_rows(model)):
        parts.append(text)
    return ", ".join(parts)


def speed_text(speed: Mapping[str, Any]) -> str:
    """Return the speed against the float model as text, with the spread where it is wide."""
    low, middle, high = (f"{speed[key]:.2f}x" for key in ("low", "speedup", "high"))
    return f"{middle} (half of the runs {low} to {high})" if speed["high"] > WIDE * speed["low"] else middle


def agreement_text(figures: Mapping[str, Any]) -> str:
    """Return the agreement of one output with the float model as text."""
    texts = []
    if figures["same"] is not None:
        what = "equal" if figures["kind"] == Kind.WHOLE else "same class"
        texts.append(f"{what} {100 * figures['same']:.1f} %")
    if figures["foreground"] is not None:
        texts.append(f"{100 * figures['foreground']:.1f} % beside the prevailing class")
    if figures["sqnr_db"] is not None:
        texts.append(f"SQNR {figures['sqnr_db']:.1f} dB")
    if figures["cosine"] is not None:
        texts.append(f"cosine {figures['cosine']:.4f} (least {figures['least_cosine']:.4f})")
    if figures["kind"] == Kind.VALUES:
        texts.append(f"relative error {figures['relative_error']:.2g}")
    return ", ".join(texts) or "no figures"


def samples_text(agreement: Mapping[str, Any]) -> str:
    """Return on how many samples two models were compared, and whether numbers were fitted to these."""
    count, held_back = agreement["samples"], agreement["held_back"]
    if held_back in (0, count):
        return f"{count} {'held-back' if held_back else 'calibration'} samples"
    return f"{count} samples, {held_back} of them held back"


def worst_text(found: Mapping[str, Any]) -> str:
    """Return the layers that err most by themselves as text."""
    rows = [f"{row['node']!r} {row['sqnr_db']:.1f} dB" for row in found.get("worst_layers", [])]
    return f"; the layers that err most by themselves: {', '.join(rows)}" if rows else ""


def first_batch(model: QModel) -> list[str]:
    """Return one line per input about the first batch, as far as a pass looked at it."""
    return [line for entry in model.journal.by("check-data") for line in entry.get("inputs", [])]


def _opset(model: onnx.ModelProto) -> int:
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 1)
