"""The report: everything that is known about one compilation, as plain JSON values (schema.json)."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from qcompile.config import recipe
from qcompile.errors import pattern
from qcompile.ir.protos import opset
from qcompile.outcomes import Audit, Judged, LayerError, Outcome, Speed
from qcompile.passmanager import PassRun
from qcompile.qmodel import QModel
from qcompile.quant.plan import Plan, region_name
from qcompile.runtime.agreement import differs
from qcompile.runtime.outputs import OutputKind
from qcompile.targets.schema import Target
from qcompile.versions import version_of

SCHEMA_VERSION = 1
ENOUGH_SAMPLES = 256
EXACT = 35.0  # dB that a layer may err by itself without being worth more bits
WIDE = 1.2  # upper quartile of measured speeds by the lower: beyond it the spread is told
NAMED = 4  # units or nodes, where there are more
OF_TARGET = ("name", "like", "digest", "opset", "runtime")
LIBRARIES = ("qcompile", "onnx", "onnxruntime", "numpy")


def build_report(model: QModel, runs: Sequence[PassRun], name: str = "") -> dict[str, Any]:
    """Return the report of a model whose passes have run; `name` is the file it came from."""
    found = model.audit
    return {
        "schema": SCHEMA_VERSION,
        "verdict": verdict(model, found),
        "warnings": warnings(model, found),
        "environment": environment(),
        "model": {"name": name, "opset": opset(model.source)},
        "target": {key: getattr(model.target, key) for key in OF_TARGET},
        "recipe": recipe(replace(model.config, method=model.config.chosen_method)),
        "data": data_facts(model),
        "audit": asdict(found) if found else {},
        "nodes": node_rows(model),
        "units": unit_rows(model.plan),
        "boundaries": boundary_rows(model.plan),
        "regions": region_rows(model),
        "training": [asdict(outcome) for outcome in model.outcomes],
        "quantizers": quantizer_rows(model),
        "weights": weight_rows(model),
        "passes": [asdict(run) for run in runs],
        "journal": model.journal.entries,
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
        "first_batch": model.first_batch,
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
    found = {outcome.piece: outcome for outcome in model.outcomes}
    rows = []
    for units in model.plan.trained_together():
        outcome = found.get(region_name(units), Outcome("", ""))
        errors = {"before": outcome.before, "after": outcome.after, "fitted": outcome.fitted}
        rows.append({"units": list(units), **errors, "trained": outcome.trained})
    return rows


def quantizer_rows(model: QModel) -> list[dict[str, Any]]:
    """Return one row per activation quantizer: bits, and its numbers once there are any."""
    rows = []
    for key, spec in model.plan.specs.items():
        found = model.plan.quantizers.get(key)
        row: dict[str, Any] = {"tensor": key.tensor, "reader": key.reader, "bits": found.bits if found else spec.bits}
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


def warnings(model: QModel, found: Audit | None) -> list[str]:
    """Return what the user should know before using the file, one line each."""
    texts = model.journal.warnings
    if model.config.random_data:
        texts.append("calibrated on random data: the ranges, and with them the accuracy, mean nothing")
    if found and found.speed and found.speed.slower:
        why = "; see the float nodes for why" if found.float_nodes else ""
        texts.append(f"the file is slower than its float model: {speed_text(found.speed)}{why}")
    if found and (text := difference_text(found.outputs)):
        texts.append(f"{text}{worst_text(found.worst_layers)}; {advice(model, found.worst_layers)}")
    texts += training_warnings(model.outcomes)
    for row in found.fused.missing if found and found.fused else ():
        texts.append(f"node {row.node!r} should run on an integer kernel, but does not: {row.rule}")
    return texts


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


def training_warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what training left out, one line per reason, and whether it was of use at all."""
    texts = []
    for reason in dict.fromkeys(item.reason for item in outcomes if item.reason):
        names = [item.piece for item in outcomes if item.reason == reason]
        texts.append(f"{len(names)} of {len(outcomes)} pieces were not trained: {reason} ({shortened(names)})")
    if outcomes and not any(item.trained or item.reason for item in outcomes):
        texts.append("training made no piece better; try more samples, or --effort max")
    return texts


def training_text(outcomes: Sequence[Outcome]) -> str:
    """Return what the verdict says about training: nothing, unless pieces were left out or none was kept."""
    kept, skipped = sum(item.trained for item in outcomes), sum(bool(item.reason) for item in outcomes)
    if outcomes and not kept:
        return f"NOTHING TRAINED (0 of {len(outcomes)} pieces kept)"
    return f"{skipped} of {len(outcomes)} pieces NOT TRAINED" if skipped else ""


def shortened(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def advice(model: QModel, worst_layers: Sequence[LayerError]) -> str:
    """Return what to try next for accuracy, most promising first, in flags that can be copied."""
    config, steps = model.config, []
    names = [layer.node for layer in worst_layers if layer.sqnr_db < EXACT]
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
    if model.data is not None and (model.data.count < ENOUGH_SAMPLES or any(item.by_heart for item in model.outcomes)):
        steps.append(f"more samples than {model.data.count}")
    if config.w == config.a == 8:
        steps.append(f"--calibration-method {'max' if config.calibration_method == 'mse' else 'mse'}")
    return f"try {', or '.join(steps)}"


def verdict(model: QModel, found: Audit | None) -> str:
    """Return one line: what came out, in size, speed and accuracy."""
    parts = [f"{model.plan.precision()} for {model.target.name}", *(_findings(found, model.target) if found else ())]
    if text := training_text(model.outcomes):
        parts.append(text)
    return ", ".join(parts)


def _findings(found: Audit, target: Target) -> Iterator[str]:
    if target.kernels == "none":
        yield "a float graph"
    else:
        yield f"{100 * found.size.emitted / found.size.float:.0f} % of the float size"
    if found.speed:
        text = speed_text(found.speed)
        yield f"SLOWER than float: {text}" if found.speed.slower else f"{text} the float speed"
    if top1 := found.top1:
        yield f"top-1 {top1.emitted:.2f} % (float {top1.float:.2f} %, {top1.samples} samples)"
    elif found.agreement and (outputs := found.outputs):
        name = min(outputs, key=lambda name: distance(outputs[name]))
        most = f", the farthest of {len(outputs)}" if len(outputs) > 1 else ""
        few = f" ({samples_text(found.agreement)})" if found.agreement.held_back < found.agreement.samples else ""
        yield f"{agreement_text(outputs[name])} on {name!r}{most}{few}"


def speed_text(speed: Speed) -> str:
    """Return the speed against the float model as text, with the spread where it is wide."""
    low, middle, high = (f"{value:.2f}x" for value in (speed.low, speed.speedup, speed.high))
    return f"{middle} (half of the runs {low} to {high})" if speed.high > WIDE * speed.low else middle


def agreement_text(figures: Mapping[str, Any]) -> str:
    """Return the agreement of one output with the float model as text."""
    texts = []
    if figures["same"] is not None:
        what = "equal" if figures["kind"] == OutputKind.WHOLE else "same class"
        texts.append(f"{what} {100 * figures['same']:.1f} %")
    if figures["foreground"] is not None:
        texts.append(f"{100 * figures['foreground']:.1f} % beside the prevailing class")
    if figures["sqnr_db"] is not None:
        texts.append(f"SQNR {figures['sqnr_db']:.1f} dB")
    if figures["cosine"] is not None:
        texts.append(f"cosine {figures['cosine']:.4f} (least {figures['least_cosine']:.4f})")
    if figures["kind"] == OutputKind.VALUES:
        texts.append(f"relative error {figures['relative_error']:.2g}")
    return ", ".join(texts) or "no figures"


def samples_text(agreement: Judged) -> str:
    """Return on how many samples two models were compared, and whether numbers were fitted to these."""
    count, held_back = agreement.samples, agreement.held_back
    if held_back in (0, count):
        return f"{count} {'held-back' if held_back else 'calibration'} sample{'s' if count > 1 else ''}"
    return f"{count} samples, {held_back} of them held back"


def worst_text(layers: Sequence[LayerError]) -> str:
    """Return the layers that err most by themselves as text."""
    rows = [f"{layer.node!r} {layer.sqnr_db:.1f} dB" for layer in layers]
    return f"; the layers that err most by themselves: {', '.join(rows)}" if rows else ""
