"""Check a quantized file of any origin against the rules of a runtime, and against its float model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from qcompile.audit.compare import compared
from qcompile.checking.graph import QuantizedFile, read_quantized
from qcompile.checking.inventory import form_of, inventory
from qcompile.checking.kernels import Kernels
from qcompile.checking.layers import layers, quantized
from qcompile.checking.result import WRONG, Check, Found
from qcompile.checking.rules import RULES, RUNTIMES, Rule
from qcompile.checking.rules.numbers import accumulators
from qcompile.data import input_infos, open_dataset
from qcompile.emission.origin import PREFIX
from qcompile.errors import InputError, nearest
from qcompile.ir.load import byte_size, load_model
from qcompile.ir.prepare import prepare
from qcompile.ir.protos import opset
from qcompile.runtime.outputs import describe_outputs
from qcompile.runtime.session import newest_opset

HERE = "ort-cpu"  # the target that is installed with qcompile


def check(
    path: str | Path,
    *,
    target: str = HERE,
    against: str | Path | None = None,
    data: Any = None,
    preprocess: str | None = None,
) -> Check:
    """Say what is quantized in an ONNX file, what of it runs on integers on a target, and what is wrong with it.

    Parameters
    ----------
    path
        The quantized file, of any tool.
    target
        The runtime: "ort-cpu", "openvino" or "tensorrt". What ONNX Runtime says itself is looked up on ort-cpu.
    against
        The float model that it was made from: both run on `data`, and are compared in agreement, size and speed.
    data
        Samples in the forms that `qcompile.compile` takes; `preprocess` says what happens to images.

    Raises
    ------
    InputError
        The file is no ONNX model or nothing in it is quantized, the target is unknown, the float model or the data do
        not fit.
    """
    if target not in RUNTIMES:
        raise InputError(f"--target {target} has no rules to check by", remedy=nearest(target, RUNTIMES))
    if (against is None) != (data is None):
        raise InputError("a comparison needs both the float model and samples", remedy="give --against and --data")
    file = read_quantized(Path(path))
    kernels = Kernels(file) if target == HERE else None
    faults = list(findings(file, target, kernels))
    found = Check(
        file=str(path),
        target=target,
        producer=producer(file.model),
        form=form_of(file),
        opset=opset(file.model),
        bytes=byte_size(file.model),
        operators=inventory(file, kernels.integer if kernels else by_rules(file, faults)),
        findings=faults,
        verdict=kernels.verdict if kernels else None,
        accumulator_bits=max((item.bits for item in accumulators(file)), default=0),
    )
    loads = kernels is None or not kernels.verdict.refused
    return with_float(found, file, Path(against), data, preprocess) if against is not None and loads else found


def producer(model: ModelProto) -> str:
    """Return the tool that wrote a file, as it says itself; our files keep the producer of their float model."""
    version = next((item.value for item in model.metadata_props if item.key == f"{PREFIX}version"), None)
    if version is not None:
        return f"qcompile {version}"
    return " ".join(filter(None, (model.producer_name, model.producer_version)))


def by_rules(file: QuantizedFile, found: Sequence[Found]) -> dict[str, bool]:
    """Say of layers whether they run on integers, as the rules know it; of none in a file that is refused."""
    if any(item.severity == WRONG for item in found):
        return {}
    missed = {item.node for item in found if RULES[item.code].kernels == "missed"}
    meant = {layer.node.name for layer in quantized(file)}
    return {layer.node.name: layer.node.name in meant - missed for layer in layers(file)}


def findings(file: QuantizedFile, target: str, kernels: Kernels | None) -> Iterator[Found]:
    """Yield what the rules of a target find; where the runtime is here, it has the last word on what runs in float."""
    asked = kernels is not None and not kernels.verdict.refused
    explained = set[str]()
    for rule in RULES.values():
        for node, detail in rule.find(file) if target in rule.runtimes else ():
            if kernels is not None and asked and rule.contradicted(kernels.integer, node):
                continue
            explained |= {node} if rule.kernels == "missed" else set()
            yield found_by(rule, node, detail)
    if kernels is None:
        return
    if kernels.verdict.refused:
        yield found_by(RULES["QC110"], "", kernels.verdict.refused)
    for node in kernels.verdict.floating:
        if node not in explained:
            yield found_by(RULES["QC100"], node, "it is a float operator in the optimized graph")


def found_by(rule: Rule, node: str, detail: str) -> Found:
    """Return a finding of a rule."""
    return Found(rule.code, rule.title, rule.severity, node, detail)


def with_float(found: Check, file: QuantizedFile, against: Path, data: Any, preprocess: str | None) -> Check:
    """Return a check with what comparing both models on samples comes to."""
    source = load_model(against)
    graph = prepare(source, found.opset, newest_opset())
    inputs = input_infos(graph)
    names, own = ({item.name for item in made} for made in (inputs, file.model.graph.input))
    if missing := sorted(names - own):
        what = f"it has no input {missing[0]!r}, which the float model has"
        raise InputError(what, where=found.file, remedy="give the float model that it was made from")
    samples = open_dataset(data, inputs, preprocess)
    seen = compared(source, file.model, samples, describe_outputs(graph), on_integers=found.target == HERE)
    return replace(
        found,
        float_bytes=byte_size(source),
        agreement=seen.agreement,
        unoptimized=seen.unoptimized,
        speed=seen.speed,
    )
