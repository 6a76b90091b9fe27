"""What must hold for the compiled form of any graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from graph_strategies import samples

from qcompile import Config, InputError, PassManager, QModel, open_model
from qcompile.calibration.collect import tap
from qcompile.pipeline import build
from qcompile.program.lower import Kind
from qcompile.quant.plan import Form
from qcompile.runtime.fused import GONE, is_integer, optimized_nodes
from qcompile.runtime.session import Session
from qcompile.simulation import simulate

BATCHES = (1, 3)


def compiled(source: onnx.ModelProto, config: Config) -> QModel | None:
    """Compile a drawn graph with every pass; None if it has nothing to quantize."""
    model = open_model(source, config, {"x": samples(source, 20)})
    try:
        PassManager(build(config)).run(model)
    except InputError as error:
        if "nothing to quantize" in str(error):
            return None
        raise
    return model


def fused_kernels(model: onnx.ModelProto, wanted: Iterable[str]) -> dict[str, str]:
    """Return {node name: op_type in the optimized graph} for the `wanted` nodes; GONE for those not found there."""
    made = dict(optimized_nodes(model))
    return {name: made.get(name, GONE) for name in wanted}


def check_file(model: QModel) -> None:
    """Assert that the file is valid, fuses, runs at every level and batch size, and has the codes of the reference.

    The reference is fed the file's own codes, so each layer is compared alone. Exact everywhere but in two places: what
    leaves a float operator differs in its last bit with the fusions around it (rarely enough to move a code by one),
    and AveragePool sums in float.
    """
    emitted = model.emitted
    assert emitted is not None
    onnx.checker.check_model(emitted, full_check=True)
    planned = [name for name, node in model.plan.nodes.items() if node.form in (Form.COMPUTE, Form.ARITHMETIC)]
    kernels = fused_kernels(emitted, planned)
    assert {name: kernel for name, kernel in kernels.items() if not is_integer(kernel)} == {}
    reference = simulate(model.graph, model.plan, "integer")
    made = {name for node in emitted.graph.node for name in node.output}
    steps = {v.name: s for s in reference.program.steps for v in s.outputs if v.quantizer and v.name in made}
    watched = onnx.ModelProto()
    watched.CopyFrom(emitted)
    tap(watched, list(steps))
    file, tapped = Session(emitted, threads=1), Session(watched, threads=1)
    plain = Session(emitted, threads=1, level="off")
    for batch in BATCHES:
        feeds = {"x": samples(model.source, batch, seed=batch)}
        outputs, codes = file.run(feeds), tapped.run(feeds)
        unoptimized = plain.run(feeds)
        for name, values in outputs.items():
            np.testing.assert_array_equal(values, codes[name], f"tapping changed {name}")
            assert np.isfinite(values).all() and values.shape == unoptimized[name].shape
        own = reference.run(feeds, given=codes)
        for name, step in steps.items():
            off = np.abs(codes[name].astype(int) - own[name])
            inexact = step.kind is Kind.ENCODE or (step.node is not None and step.node.op == "AveragePool")
            if inexact:
                assert off.max(initial=0) <= 1 and np.count_nonzero(off) <= 1 + off.size // 100, name
            else:
                assert not off.any(), f"{name}: {np.count_nonzero(off)} of {off.size} codes differ ({step.kind})"
