"""The error of each layer by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from networks import CALIBRATE, CHAIN, NETWORKS, RESIDUAL, compiled, samples

from qcompile.calibration.collect import tap
from qcompile.ir import to_model
from qcompile.program.lower import lower
from qcompile.quant.arithmetic import dequantize
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session
from qcompile.simulation import simulate
from qcompile.simulation.layers import layer_errors


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_an_error(name: str) -> None:
    model = compiled(NETWORKS[name], CALIBRATE, w=4, a=4)
    found = layer_errors(model.graph, model.plan, [samples(model.source, 2)])
    steps = lower(model.graph, model.plan).steps
    assert set(found) == {step.node.name for step in steps if step.form is Form.COMPUTE and step.node}
    assert list(found.values()) == sorted(found.values())
    assert all(error > 0 for error in found.values())


def test_the_first_layer_errs_as_it_does_in_the_model() -> None:
    """Its inputs are exact there too."""
    model = compiled(RESIDUAL, CALIBRATE, w=4, a=4)
    feeds = samples(model.source, 4)
    step = next(step for step in lower(model.graph, model.plan).steps if step.node and step.node.name == "stem")
    value = step.outputs[0]
    simulation, exact = simulate(model.graph, model.plan, "float"), to_model(model.graph)
    tap(simulation, [value.name])
    tap(exact, ["trunk"])
    codes = Session(simulation, fuse_qdq=False, threads=1).run(feeds, [value.name])[value.name]
    reference = Session(exact, threads=1).run(feeds, ["trunk"])["trunk"].astype(np.float64)
    assert value.quantizer is not None
    noise = ((reference - dequantize(codes, value.quantizer)) ** 2).sum()
    expected = 10 * np.log10((reference**2).sum() / noise)
    assert layer_errors(model.graph, model.plan, [feeds])["stem"] == pytest.approx(expected, abs=1e-3)  # float32 sums


def test_narrow_outputs_count_where_they_are_read() -> None:
    """The first layer of a chain has 8 bits, what the second reads 2: that is the second one's error."""
    wide, narrow = (
        layer_errors(model.graph, model.plan, [samples(model.source, 4)])
        for model in (compiled(CHAIN, CALIBRATE, w=8, a=bits) for bits in (8, 2))
    )
    assert narrow["conv1"] > wide["conv1"] - 1 > 30
    assert narrow["conv2"] < 15 < 30 < wide["conv2"]


def test_a_bad_layer_is_the_worst_and_the_others_err_as_before() -> None:
    model = compiled(RESIDUAL, CALIBRATE, w=8, a=8)
    feeds = samples(model.source, 4)
    before = layer_errors(model.graph, model.plan, [feeds])
    weight = model.plan.weights["first"]
    model.plan.weights["first"] = replace(weight, scale=weight.scale * np.float32(1.5))
    after = layer_errors(model.graph, model.plan, [feeds])
    assert next(iter(after)) == "first" and after["first"] < 10
    del before["first"], after["first"]
    assert before == after
