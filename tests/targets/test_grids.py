"""Nothing between placement and training knows which type codes have: a target with int8 codes goes all the way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import CALIBRATE, CHAIN, CONCAT, EMIT, MOVERS, RELU6, RESIDUAL, network, run, samples
from training_runs import DECIDE, SETTINGS, trained

from qcompile import Config, QModel, open_model
from qcompile.calibration.collect import tap
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passmanager import Pass
from qcompile.quant.grid import Grid
from qcompile.quant.plan_check import plan_problem
from qcompile.quant.plan_file import to_json
from qcompile.runtime.session import Session
from qcompile.simulation import simulate
from qcompile.targets import schema

TEXTS = {"chain": CHAIN, "residual": RESIDUAL, "relu6": RELU6, "concat": CONCAT, "movers": MOVERS}


@pytest.fixture(autouse=True)
def signed(monkeypatch: pytest.MonkeyPatch) -> None:
    def grid(bits: int) -> Grid:
        return Grid(-(1 << bits - 1), (1 << bits - 1) - 1, "int8")

    monkeypatch.setattr(schema, "GRIDS", {**schema.GRIDS, "int8": grid})


def compiled(text: str, passes: tuple[Pass, ...], count: int = 16, **settings: object) -> QModel:
    source = network(text)
    opened = open_model(source, Config(**{"threads": 1} | settings), samples(source, count))  # type: ignore[arg-type]
    model = replace(opened, target=replace(opened.target, activations="int8"))
    run(model, passes)
    return model


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", TEXTS)
def test_the_file_has_the_codes_of_the_reference(name: str, bits: int) -> None:
    model = compiled(TEXTS[name], EMIT, w=bits, a=bits)
    assert model.emitted is not None
    onnx.checker.check_model(model.emitted, full_check=True)
    reference = simulate(model.graph, model.plan, "integer")
    steps = {value.name: step for step in reference.program.steps for value in step.outputs if value.quantizer}
    watched = onnx.ModelProto()
    watched.CopyFrom(model.emitted)
    tap(watched, list(steps))
    feeds = samples(model.source, 3)
    codes = Session(watched, threads=1, level="off").run(feeds)
    own = reference.run(feeds, given=codes)
    for made in steps:
        assert codes[made].dtype == own[made].dtype == np.int8
        off = np.abs(codes[made].astype(int) - own[made])
        assert off.max(initial=0) <= 1 and np.count_nonzero(off) <= 1 + off.size // 100, made


def test_uint8_and_int8_are_one_function() -> None:
    signed, unsigned = compiled(RESIDUAL, EMIT, w=4, a=4), compiled(RESIDUAL, EMIT, w=4, a=4)
    unsigned = replace(unsigned, target=schema.Target.load("ort-cpu"))
    run(unsigned, EMIT)
    feeds = samples(signed.source, 3)
    one, other = (Session(model.emitted, threads=1, level="off").run(feeds) for model in (signed, unsigned))
    np.testing.assert_allclose(one["y"], other["y"], atol=1e-6)


def test_training_and_correction_keep_to_the_grid() -> None:
    model = compiled(RESIDUAL, DECIDE, 60, **SETTINGS)
    outcomes = trained(model)
    assert outcomes and not any(outcome.reason for outcome in outcomes)
    assert {quantizer.grid.container for quantizer in model.plan.quantizers.values()} == {"int8"}
    assert plan_problem(model.plan) == ""
    run(model, (InsertQDQ(),))


def test_the_plan_file_says_which_grid() -> None:
    plan = compiled(CHAIN, CALIBRATE, w=4, a=4).plan
    document = to_json(plan, target="", fingerprint="")
    assert document["quantizers"]["b"][""]["grid"] == {"low": -8, "high": 7, "container": "int8"}
