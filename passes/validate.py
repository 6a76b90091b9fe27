"""Check and run the emitted model: what the user gets has been run before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.data.dataset import Dataset
from qcompile.emission.check import check, nodes_on_codes
from qcompile.errors import EmissionError, InputError, QCompileError
from qcompile.ir.load import byte_size
from qcompile.progress import track
from qcompile.qmodel import Arrays, QModel
from qcompile.quant.plan import Form
from qcompile.runtime.agreement import Agreement, differs, kept_positions, labelled_classes
from qcompile.runtime.fused import GONE, is_integer, kernel_counts, optimized_nodes
from qcompile.runtime.outputs import Output, describe_outputs
from qcompile.runtime.session import Session, version
from qcompile.runtime.timing import compare
from qcompile.simulation.layers import layer_errors

SAMPLES = 64  # compared with the float model, at most
FEW = 8  # held-back samples: below, one that happens to be easy would stand for all
ELEMENTS = 32 * 3 * 224 * 224  # of all inputs together that are compared: keeps the cost of large images in bounds
BATCH_ELEMENTS = 3 * 224 * 224  # of one batch: keeps memory in bounds
UNOPTIMIZED_BATCHES = 2  # five times slower
EVALUATION_BATCH = 16
LAYER_SAMPLES, WORST = 4, 3  # that layers are measured on, and the layers that are named
TIMING_SECONDS = 0.4
UNKNOWN = "no rule of the emitted file explains it"


@dataclass(frozen=True)
class Validate:
    """Check the emitted model against the rules of its target, look up its kernels, run it and compare it with float.

    Writes one journal entry, "audit". Shares are in 0..1, sizes in bytes, times in seconds of one run:

    onnxruntime   version it was run on
    bits          {"weights": {bits: tensors}, "activations": {bits: quantizers}}, bits as text
    float_nodes   [{"node", "op", "reason"}]: those that the plan keeps float
    kernels       {op_type: nodes} of ONNX Runtime's optimized graph
    fused         {"planned": nodes that should run on integer kernels, "integer": those that do,
                  "missing": [{"node", "kernel", "rule"}]}; kernel "gone" if the node is not in the optimized graph
    size          {"float", "emitted"}
    agreement     with the float model: {"samples", "held_back": how many of these no number was fitted to, "outputs":
                  {name: figures}}, or None without samples; where few are held back, the others count as well
    worst_layers  [{"node", "sqnr_db"}]: where an output differs much, those that err most by themselves
    unoptimized   of the run with all optimizations off with the optimized run, in the same form
    speed         {"float", "emitted", "speedup", "low", "high", "rounds", "batch", "threads"}, or None without samples;
                  processor time, half of all rounds in low .. high
    top1          {"samples", "float", "emitted"} in percent, or None without labels

    The figures of an output are those of `Agreement.summary`.
    Raises EmissionError for a broken rule or NaN in an output of the emitted model.
    """

    name: ClassVar[str] = "validate"
    requires: ClassVar[tuple[str, ...]] = ("insert-qdq",)

    def run(self, model: QModel) -> int:
        """Validate `model.emitted`; nothing is changed."""
        if model.emitted is None:
            raise QCompileError("there is no emitted model to validate", remedy="let a pass emit one first")
        violations = check(model.emitted)
        if violations:
            raise EmissionError(
                f"the emitted model breaks {len(violations)} rules of {model.target.name}: {violations[0]}",
                remedy="please report it; --keep-float on this node avoids it",
            )
        nodes = optimized_nodes(model.emitted)
        if names := unasked(model, nodes):
            text = (
                "kept float, yet on integer kernels, since ONNX Runtime quantizes what stands between quantized nodes"
            )
            model.journal.note(self.name, "warning", text=f"{text}: {', '.join(names)}")
        compared = comparison(model, model.emitted)
        model.journal.note(
            self.name,
            "audit",
            onnxruntime=version(),
            bits=bit_counts(model),
            float_nodes=float_nodes(model),
            kernels=kernel_counts(nodes),
            fused=fused(model, model.emitted, dict(nodes)),
            size={"float": byte_size(model.source), "emitted": byte_size(model.emitted)},
            **compared,
            worst_layers=worst_layers(model, compared["agreement"]),
            top1=top1(model, model.emitted),
        )
        return 0


def bit_counts(model: QModel) -> dict[str, dict[str, int]]:
    """Return how many weights and activation quantizers have how many bits."""
    weights = Counter(weight.bits for weight in model.plan.weights.values())
    activations = Counter(quantizer.bits for quantizer in model.plan.quantizers.values())
    groups = {"weights": weights, "activations": activations}
    return {name: {str(bits): counts[bits] for bits in sorted(counts)} for name, counts in groups.items()}


def float_nodes(model: QModel) -> list[dict[str, str]]:
    """Return the nodes that the plan keeps float, with reasons."""
    placed = ((node, model.plan.nodes.get(node.name)) for node in model.graph.nodes)
    return [
        {"node": node.name, "op": node.op, "reason": plan.reason if plan else "no pass has placed it"}
        for node, plan in placed
        if plan is None or plan.form is Form.FLOAT
    ]


def fused(model: QModel, emitted: onnx.ModelProto, made: dict[str, str]) -> dict[str, Any]:
    """Look up every node planned as integer among those ONNX Runtime `made`; name the rule that a missing one broke."""
    planned = [name for name, node in model.plan.nodes.items() if node.form in (Form.COMPUTE, Form.ARITHMETIC)]
    on_codes = nodes_on_codes(emitted)
    missing = [name for name in planned if name not in on_codes and not is_integer(made.get(name, GONE))]
    rules: dict[str, str] = {}
    for violation in check(emitted, planned=missing) if missing else []:
        rules.setdefault(violation.node, f"{violation.detail} [{violation.rule}]")
    rows = [{"node": name, "kernel": made.get(name, GONE), "rule": rules.get(name, UNKNOWN)} for name in missing]
    return {"planned": len(planned), "integer": len(planned) - len(missing), "missing": rows}


def unasked(model: QModel, nodes: list[tuple[str, str]]) -> list[str]:
    """Return the nodes that the plan keeps float and ONNX Runtime quantized.

    Between DequantizeLinear and QuantizeLinear it does so with an Add and, from 1.22 on, with a Conv of float weight.
    """
    kept = {name for name, node in model.plan.nodes.items() if node.form is Form.FLOAT}
    return [name for name, op_type in nodes if name in kept and is_integer(op_type)]


def comparison(model: QModel, emitted: onnx.ModelProto) -> dict[str, Any]:
    """Run float and emitted model on the same samples: agreement, speed, and what optimizations change."""
    reference, optimized = Session(model.source, threads=1, fault=InputError), Session(emitted, threads=1)
    samples = judging(model)
    if samples is None:  # compiled from a saved plan
        return {"agreement": None, "unoptimized": None, "speed": None}
    data, size = some(samples)
    described = describe_outputs(model.graph, labelled=model.evaluation is not None)
    agreement = Comparison("the emitted model", described)
    unoptimized = Comparison("the emitted model without optimizations", described)
    first: list[tuple[Arrays, Arrays]] = []
    for feeds in track(data.batches(size), "validate"):
        expected, outputs = reference.run(feeds), optimized.run(feeds)
        agreement.add(feeds, expected, outputs, data.samples_in(feeds))
        if len(first) < UNOPTIMIZED_BATCHES:
            first.append((feeds, outputs))
    for name, times in agreement.unlike.items():
        text = f"output {name!r} has another shape than the float model's in {times} batches: not compared there"
        model.journal.note(Validate.name, "warning", text=text)
    one = data.first_of(first[0][0])
    speed = speed_of(reference, optimized, one, data.samples_in(one))
    del reference, optimized  # before the next one is loaded
    plain = Session(emitted, level="off", threads=1)
    for feeds, outputs in first:
        unoptimized.add(feeds, outputs, plain.run(feeds), data.samples_in(feeds))
    found = agreement.summary() | {"held_back": unfitted(model, data)}
    return {"agreement": found, "unoptimized": unoptimized.summary(), "speed": speed}


def judging(model: QModel) -> Dataset | None:
    """Return the samples that judge: those that are held back; where these are few, the others as well."""
    held_back = model.held_back
    return model.data if held_back is None else held_back if held_back.count >= FEW else held_back.joined(model.data)


def some(data: Dataset) -> tuple[Dataset, int]:
    """Return samples that are few enough, and how many to run at once: by their size alone, never by the time."""
    elements = sum(array.size for array in next(data.take(0, data.fixed_batch or 1).batches(1)).values())
    step = data.fixed_batch or 1
    count = min(SAMPLES, max(ELEMENTS // max(elements // step, 1), 1))
    return data.spread(count), max(min(BATCH_ELEMENTS // max(elements, 1), SAMPLES), 1)


def unfitted(model: QModel, data: Dataset) -> int:
    """Return how many of the samples no number was fitted to."""
    if model.held_back is None:
        return 0
    spared = np.isin(data.numbers, model.held_back.numbers)
    return int((spared if model.data is None else spared & ~np.isin(data.numbers, model.data.numbers)).sum())


class Comparison:
    """Agreement of every output of `subject` with a reference.

    How many rows a detector's output has depends on its values; `unlike` counts the batches in which both differ there.
    """

    def __init__(self, subject: str, described: Mapping[str, Output]) -> None:
        self.subject, self.described = subject, described
        self.outputs: dict[str, Agreement] = {}
        self.unlike: Counter[str] = Counter()
        self.samples = 0

    def add(self, feeds: Arrays, reference: Arrays, outputs: Arrays, samples: int) -> None:
        """Add the outputs that `feeds` of so many samples gave, those of equal shape; raise where one holds NaN."""
        self.samples += samples
        for name, values in outputs.items():
            if has_nan(reference[name]):
                raise InputError(f"output {name!r} of the float model holds NaN", remedy="check the model and its data")
            if has_nan(values):
                raise EmissionError(f"output {name!r} of {self.subject} holds NaN where the float model does not")
            if values.shape == reference[name].shape:
                output = self.described.get(name, Output())
                found = self.outputs.setdefault(name, Agreement(output))
                found.add(reference[name], values, samples, kept_positions(output, feeds))
            else:
                self.unlike[name] += 1

    def summary(self) -> dict[str, Any]:
        """Return the number of samples and the figures of each output."""
        return {"samples": self.samples, "outputs": {name: found.summary() for name, found in self.outputs.items()}}


def worst_layers(model: QModel, agreement: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the layers that err most by themselves, where an output differs much from the float model's.

    They serve a warning: where they cannot be measured, it comes without them.
    """
    data = judging(model)
    if agreement is None or data is None or not any(map(differs, agreement["outputs"].values())):
        return []
    step = data.fixed_batch or 1
    some = data.take(0, min(LAYER_SAMPLES // step * step or step, data.count)).batches(1)
    errors: dict[str, float] = {}
    with suppress(QCompileError):
        errors = layer_errors(model.graph, model.plan, some, threads=model.config.threads)
    return [{"node": node, "sqnr_db": error} for node, error in list(errors.items())[:WORST] if math.isfinite(error)]


def has_nan(values: NDArray[Any]) -> bool:
    """Say whether a float array holds NaN."""
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def speed_of(reference: Session, emitted: Session, feeds: Arrays, batch: int) -> dict[str, float]:
    """Time one inference of both in turn, on one thread; `batch` samples are in `feeds`."""
    timing = compare(reference, emitted, feeds, seconds=TIMING_SECONDS)
    facts = {"float": timing.first, "emitted": timing.second}
    facts |= {"speedup": timing.speedup, "low": timing.low, "high": timing.high}
    return facts | {"rounds": timing.rounds, "batch": batch, "threads": 1}


def top1(model: QModel, emitted: onnx.ModelProto) -> dict[str, float] | None:
    """Score both models on the labelled samples, by the first output that scores classes."""
    data = model.evaluation
    if data is None or data.labels is None:
        return None
    sessions = {"float": Session(model.source, threads=model.config.threads, fault=InputError)}
    sessions["emitted"] = Session(emitted, threads=model.config.threads)
    hits, done = dict.fromkeys(sessions, 0), 0
    for feeds in track(data.batches(model.config.batch or EVALUATION_BATCH), "evaluate"):
        rows = data.samples_in(feeds)
        for name, session in sessions.items():
            hits[name] += int((labelled_classes(session.run(feeds)) == data.labels[done : done + rows]).sum())
        done += rows
    return {"samples": done} | {name: 100 * count / done for name, count in hits.items()}
