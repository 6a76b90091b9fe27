"""Check and run the emitted model: what the user gets has been run before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from qcompile.audit.compare import Comparison, compared, judging, unfitted, worst_layers
from qcompile.audit.facts import bit_counts, float_nodes
from qcompile.audit.kernels import fused, unasked
from qcompile.audit.score import top1
from qcompile.backends import check
from qcompile.errors import EmissionError, QCompileError
from qcompile.ir.load import byte_size
from qcompile.outcomes import Audit, Judged, Size
from qcompile.qmodel import QModel
from qcompile.runtime.fused import kernel_counts, optimized_nodes
from qcompile.runtime.outputs import describe_outputs
from qcompile.runtime.session import version
from qcompile.runtime.unpack import unpacked


@dataclass(frozen=True)
class Validate:
    """Check the emitted model against the rules of its target, look up its kernels, run it and compare it with float.

    Where its integer kernels are not those of ONNX Runtime, the file runs in float between its quantizers: no kernels
    are claimed, and nothing is timed.
    Fills `model.audit`. Raises EmissionError for a broken rule or NaN in an output of the emitted model.
    """

    name: ClassVar[str] = "validate"
    requires: ClassVar[tuple[str, ...]] = ("insert-qdq",)

    def run(self, model: QModel) -> int:
        """Validate `model.emitted`; nothing is changed."""
        if model.emitted is None:
            raise QCompileError("there is no emitted model to validate", remedy="let a pass emit one first")
        _keeps_rules(model, model.emitted)
        loaded, here = unpacked(model.emitted, model.store), model.target.runs_here
        nodes = optimized_nodes(loaded, fuse_qdq=here)
        if names := unasked(model.plan, nodes):
            text = (
                "kept float, yet on integer kernels, since ONNX Runtime quantizes what stands between quantized nodes"
            )
            model.journal.warn(self.name, f"{text}: {', '.join(names)}")
        found = _compared(model, model.emitted, loaded)
        data, threads = judging(model.data, model.held_back), model.config.threads
        agreement = _judged(model, found) if found else None
        outputs = agreement.outputs.values() if agreement else ()
        model.audit = Audit(
            onnxruntime=version(),
            bits=bit_counts(model.plan),
            float_nodes=float_nodes(model.graph, model.plan),
            kernels=kernel_counts(nodes),
            fused=fused(model.plan, model.target, model.emitted, dict(nodes)) if here else None,
            size=Size(byte_size(model.source), byte_size(model.emitted)),
            agreement=agreement,
            unoptimized=found.unoptimized if found else None,
            speed=found.speed if found else None,
            worst_layers=worst_layers(model.graph, model.plan, data, outputs, threads=threads),
            top1=top1(
                model.source, loaded, model.evaluation, batch=model.config.batch, threads=threads, on_integers=here
            ),
        )
        return 0


def _keeps_rules(model: QModel, emitted: onnx.ModelProto) -> None:
    if violations := check(emitted, model.target):
        raise EmissionError(
            f"the emitted model breaks {len(violations)} rules of {model.target.name}: {violations[0]}",
            remedy="please report it; --keep-float on this node avoids it",
        )


def _compared(model: QModel, emitted: onnx.ModelProto, loaded: onnx.ModelProto) -> Comparison | None:
    """Compare both models on samples; None where there are none: compiled from a saved plan."""
    data = judging(model.data, model.held_back)
    if data is None:
        return None
    described = describe_outputs(model.graph, labelled=model.evaluation is not None)
    found = compared(model.source, emitted, data, described, loaded=loaded, on_integers=model.target.runs_here)
    for name, times in found.unlike.items():
        text = f"output {name!r} has another shape than the float model's in {times} batches: not compared there"
        model.journal.warn(Validate.name, text)
    return found


def _judged(model: QModel, found: Comparison) -> Judged:
    held_back = unfitted(found.data, model.data, model.held_back)
    return Judged(found.agreement.samples, found.agreement.outputs, held_back)
