"""Stretches that are faster in float: when it looks, what it decides by times that are given, what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from networks import CHAIN, CLASSIFIER, PRELU, RESIDUAL, network, samples

from qcompile import Config, PassManager, QModel, build, open_model
from qcompile.errors import QCompileError
from qcompile.outcomes import Audit, Fused, Size, Speed
from qcompile.passes.float_where_faster import CLEARLY_SLOWER, REASON, FloatWhereFaster, Trials, joined, stretches
from qcompile.pipeline import emit, numbers, place
from qcompile.quant.plan import Form
from qcompile.runtime.session import Session

FLOAT_MS = 5.0


@dataclass(frozen=True)
class Measured:
    """Stands for the audit of a file whose layers of some names are slow on integers."""

    slow: str
    name: ClassVar[str] = "validate"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        gain = speedup(model, self.slow)
        speed = Speed(FLOAT_MS / 1e3, FLOAT_MS / 1e3 / gain, gain, gain, gain, rounds=1, batch=1, threads=1)
        model.audit = Audit("", {}, [], {}, Fused(0, 0), Size(1, 1), speed=speed)
        return 0


def speedup(model: QModel, slow: str) -> float:
    """Return 1 over the time as a share of the float model's: 0.5 for each slow layer on integers, else 0.1."""
    compute = [node.name for node in model.graph.nodes if node.op in ("Conv", "Gemm", "MatMul")]
    coded = [name for name in compute if model.plan.form(name) is Form.COMPUTE]
    return len(compute) / sum((5 if name in slow.split() else 0.5) if name in coded else 1 for name in compute)


def prepared(text: str, slow: str, **settings: Any) -> QModel:
    """Compile up to the audit, which finds `slow` layers."""
    source = network(text)
    config = Config(**{"threads": 1, "method": "rtn"} | settings)
    model = open_model(source, config, samples(source))
    PassManager([item for item in build(config) if item.name not in ("validate", "float-where-faster")]).run(model)
    Measured(slow).run(model)
    return model


def look(model: QModel, slow: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the pass with times by the same rule, every border costing a hundredth."""

    def times(trials: Trials, choices: list[tuple[bool, ...]], _: float) -> list[float]:
        found = []
        for choice in choices:
            kept = {name for keep, piece in zip(choice, trials.pieces) if keep for name in piece}
            nodes = {
                name: replace(node, form=Form.FLOAT) if name in kept else node
                for name, node in trials.model.plan.nodes.items()
            }
            trial = replace(trials.model, plan=replace(trials.model.plan, nodes=nodes))
            found.append(1 / speedup(trial, slow) + 0.01 * sum(a != b for a, b in pairwise(choice)))
        return found

    monkeypatch.setattr(Trials, "times", times)
    config = model.config
    again = [Measured(slow) if item.name == "validate" else item for item in (*numbers(config), *emit(config))]
    return FloatWhereFaster(place(config), again, config.placement).run(model)


def float_layers(model: QModel) -> dict[str, str]:
    return {name: node.reason for name, node in model.plan.nodes.items() if node.form is Form.FLOAT}


def test_the_slow_stretch_is_float_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(CHAIN, "conv1")
    assert look(model, "conv1", monkeypatch) == 2  # and its Relu
    assert float_layers(model) == {"conv1": REASON, "relu1": REASON}
    notes = {entry["what"]: entry for entry in model.journal.by("float-where-faster")}
    assert notes["kept float"]["nodes"] == ["conv1", "relu1"]
    speed = notes["speed against float"]
    assert speed["before"] < CLEARLY_SLOWER < 1 < speed["after"]
    assert model.audit is not None and model.audit.speed is not None
    assert model.audit.speed.speedup == speed["after"]
    assert set(model.plan.weights) == {"conv2", "conv3"}
    feeds = samples(model.source)
    assert model.emitted is not None
    found, expected = (Session(file, threads=1).run(feeds)["y"] for file in (model.emitted, model.source))
    assert np.mean((found - expected) ** 2) < 0.001 * np.mean(expected**2)


def test_the_plan_gives_the_file_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(CHAIN, "conv1")
    look(model, "conv1", monkeypatch)
    again = open_model(model.source, model.config, samples(model.source))
    PassManager([item for item in build(model.config, model.plan) if item.name != "validate"]).run(again)
    assert again.emitted is not None and model.emitted is not None
    assert again.emitted.SerializeToString() == model.emitted.SerializeToString()


def test_twice_is_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(CHAIN, "conv1")
    look(model, "conv1", monkeypatch)
    plan = model.plan
    assert look(model, "conv1", monkeypatch) == 0 and model.plan is plan


@pytest.mark.parametrize(
    ("settings", "slow", "looks"),
    [
        ({}, "conv1", True),
        ({}, "", False),  # faster than float
        ({"placement": "all"}, "conv1", False),
        ({"w": 4, "a": 4}, "conv1", False),  # asked for: a small file
        ({"placement": "fast", "w": 4, "a": 4}, "conv1", True),
        ({"placement": "fast"}, "", True),
    ],
)
def test_when_it_looks(settings: dict[str, Any], slow: str, looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(CHAIN, slow, **settings)
    assert (look(model, slow, monkeypatch) > 0) == (looks and bool(slow))
    assert any(model.journal.by("float-where-faster")) == looks


def test_tiny_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.FLOAT_MS", 0.01)
    assert look(prepared(CHAIN, "conv1"), "conv1", monkeypatch) == 0


def test_what_is_not_faster_after_all_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(CHAIN, "conv1")
    plan, emitted, corrected = model.plan, model.emitted, model.corrected
    monkeypatch.setattr(f"{__name__}.speedup", lambda *_: 0.5)  # whatever is float
    monkeypatch.setattr(Trials, "best", lambda trials: ((True, *[False] * (len(trials.pieces) - 1)), trials.pieces))
    config = model.config
    again = [Measured("") if item.name == "validate" else item for item in (*numbers(config), *emit(config))]
    assert FloatWhereFaster(place(config), again, config.placement).run(model) == 0
    assert model.plan is plan and model.emitted is emitted and model.kept_float == {}
    assert corrected is not None and model.corrected is corrected


def test_a_second_file_that_fails_leaves_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Failing:
        name: ClassVar[str] = "calibrate"
        requires: ClassVar[tuple[str, ...]] = ()

        def run(self, model: QModel) -> int:
            raise QCompileError("a kernel refuses its scales")

    model = prepared(CHAIN, "conv1")
    plan, emitted, entries = model.plan, model.emitted, list(model.journal.entries)
    monkeypatch.setattr(Trials, "best", lambda trials: ((True, *[False] * (len(trials.pieces) - 1)), trials.pieces))
    assert FloatWhereFaster(place(model.config), [Failing()]).run(model) == 0
    assert model.plan is plan and model.emitted is emitted and model.journal.entries[:-1] == entries


@pytest.mark.parametrize("text", [CHAIN, CLASSIFIER, PRELU, RESIDUAL])
def test_every_trial_runs_on_the_kernels_it_should(text: str) -> None:
    model = prepared(text, "")
    trials = Trials(model, place(model.config))
    count = len(trials.pieces)
    for first in range(count):
        choice = tuple(place >= first for place in range(count))
        assert trials.session(choice) is not None
        shares = trials.times([choice], seconds=0.01)
        assert len(shares) == 1 and 0 < shares[0] < np.inf
    assert not trials.has_layer((True,) * count) and trials.has_layer((False,) * count)


def test_units_are_joined_evenly() -> None:
    units = [[str(k)] for k in range(10)]
    assert joined(units, 4) == [["0", "1"], ["2", "3", "4"], ["5", "6", "7"], ["8", "9"]]
    assert joined(units[:3], 4) == [["0"], ["1"], ["2"]]


def test_stretches() -> None:
    assert stretches((True, True, False, True), [["a"], ["b"], ["c"], ["d", "e"]]) == [["a", "b"], ["d", "e"]]
