from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import CORRECT, RESIDUAL, network, run, samples

import qcompile
from qcompile import Config, QModel, open_model
from qcompile.passes import score_losses
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.partition_units import PartitionUnits
from qcompile.passes.score_losses import ScoreLosses
from qcompile.pipeline import build, build_placement
from qcompile.progress import listening
from qcompile.quant.plan_file import save_plan
from qcompile.runtime.session import Session
from qcompile.training.pieces import join_units
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import reconstruct
from qcompile.training.work_dir import WorkDir

SETTINGS: dict[str, Any] = {"w": 2, "a": 4, "method": "mrecg", "fuse_by": "loss", "score_steps": 60, "threads": 1}
ROUND = """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B, float[4,4,1,1] C) => (float[N,4,P,Q] y) {
  [first] a = Conv(x, A)  [relu] b = Relu(a)  [inner] c = Conv(b, B)  [round] r = Round(c)  [last] y = Conv(r, C)
}"""


def calibrated(text: str = RESIDUAL, **settings: Any) -> QModel:
    source = network(text)
    model = open_model(source, Config(**SETTINGS | settings), samples(source, 100))
    run(model, (CORRECT[0], PartitionUnits(max_stack=1), *CORRECT[1:]))
    return model


def score(model: QModel) -> int:
    return ScoreLosses(Training(steps=model.config.score_steps)).run(model)


def names(config: Config) -> list[str]:
    return [item.name for item in build(config)]


def saved(model: QModel, path: Path) -> bytes:
    save_plan(model.plan, path, target="ort-cpu", fingerprint="")
    return path.read_bytes()


def test_the_loss_of_the_last_unit_is_that_of_the_file_on_samples_that_were_not_trained_on() -> None:
    model = calibrated()
    assert score(model) == len(model.plan.units) == len(model.plan.losses)
    trained = replace(model, plan=copy.deepcopy(model.plan), config=replace(model.config, steps=60))
    units = join_units(trained.plan, [(unit.name,) for unit in trained.plan.units])
    outcomes = list(reconstruct(trained, units, Training.of(trained.config), title="score losses"))
    assert any(outcome.trained for outcome in outcomes)  # else this test shows less
    InsertQDQ().run(trained)
    assert trained.emitted is not None and model.held_back is not None
    (feeds,) = model.held_back.batches(model.held_back.count)
    exact, made = (Session(item, threads=1).run(feeds)["y"] for item in (model.source, trained.emitted))
    error = np.square(made - exact).sum() / np.square(exact).sum()
    # the file sums in another order
    assert model.plan.losses[model.plan.units[-1].name] == pytest.approx(error, rel=1e-3)


def test_nothing_but_the_losses_is_kept(tmp_path: Path) -> None:
    model = calibrated()
    before = saved(model, tmp_path / "before.npz")
    score(model)
    losses, model.plan.losses = model.plan.losses, {}
    assert saved(model, tmp_path / "after.npz") == before
    assert score(model) == 3 and model.plan.losses == losses  # and twice is once


def test_steps_of_scoring_are_those_of_its_flag() -> None:
    model = calibrated(score_steps=3, steps=7)
    heard: list[tuple[str, int, int | None]] = []
    with listening(lambda title, done, total, detail: heard.append((title, done, total))):
        score(model)
    assert heard[-1] == ("score losses", 9, 9)  # 3 units


def test_a_unit_that_cannot_be_trained_has_no_loss() -> None:
    model = calibrated(ROUND)
    score(model)
    left_out = {entry["unit"]: entry["reason"] for entry in model.journal.by("score-losses")}
    (unit,) = (unit.name for unit in model.plan.units if "round" in unit.nodes)
    assert list(left_out) == [unit] and "Round" in left_out[unit]
    assert set(model.plan.losses) == {unit.name for unit in model.plan.units} - {unit}


def test_losses_are_measured_where_they_decide() -> None:
    for by in ("data-dependent", "loss"):
        config = Config(method="mrecg", fuse_by=by)  # type: ignore[arg-type]
        order = names(config)
        start = order.index("correct-bias")
        assert order[start] == "correct-bias"
        assert order[start + 2 : start + 5] == ["score-losses", "fuse-regions", "reconstruct"]
        assert order.count("fuse-regions") == 1
        assert "fuse-regions" not in [item.name for item in build_placement(config)]
    for settings in ({}, {"fuse": (("0", "1"),)}, {"fuse_by": "loss", "fuse_top_k": 0}):
        order = names(Config(method="mrecg", **settings))  # type: ignore[arg-type]
        assert "score-losses" not in order and order.index("fuse-regions") < order.index("check-data")
    assert "fuse-regions" not in names(Config(method="qdrop"))


# --- from file to file


def settings(**more: Any) -> Config:
    return Config(**SETTINGS | {"first_last_bits": 2, "steps": 10, "fuse_top_k": 1} | more)


FOUR_LAYERS = """net (float[N,3,8,8] x, float[6,3,3,3] A, float[6,6,3,3] B, float[6,6,3,3] C, float[6,6,3,3] D,
  float[4,6,1,1] E) => (float[N,4,P,Q] y) {
  [stem] a = Conv(x, A)  [relu1] b = Relu(a)
  [one] c = Conv<pads = [1,1,1,1], strides = [2,2]>(b, B)  [relu2] d = Relu(c)
  [two] e = Conv<pads = [1,1,1,1], strides = [2,2]>(d, C)  [relu3] f = Relu(e)
  [three] g = Conv<pads = [1,1,1,1], strides = [2,2]>(f, D)  [relu4] h = Relu(g)
  [head] y = Conv(h, E)
}"""


@pytest.mark.parametrize("by", ["data-dependent", "loss"])
def test_where_the_measured_losses_differ_most_units_are_fused(by: str) -> None:
    source = network(FOUR_LAYERS)
    result = qcompile.compile(source, settings(fuse_by=by), samples(source, 60))
    losses = {row["name"]: row["loss"] for row in result.report["units"]}
    inner = [unit.name for unit in result.plan.units][1:-1]
    assert len(inner) == 3 and all(losses.values())
    change = [
        losses[second] / losses[first] if by == "loss" else abs(losses[second] - losses[first])
        for first, second in pairwise(inner)
    ]
    at = int(np.argmax(change))
    (fused,) = (row for row in result.report["regions"] if len(row["units"]) > 1)
    assert fused["units"] == inner[at : at + 2] and fused["before"] > 0 and fused["after"] > 0


class KilledError(Exception):
    """Ends a run."""


def killing(call: Callable[..., None], times: int) -> Callable[..., None]:
    """Return `call`, which ends the run once it has done its work for so many times."""
    done = 0

    def counted(*arguments: Any) -> None:
        nonlocal done
        call(*arguments)
        done += 1
        if done == times:
            raise KilledError

    return counted


def test_a_run_that_goes_on_fuses_the_same_without_measuring_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = network(FOUR_LAYERS)
    whole = qcompile.compile(source, settings(), samples(source, 60))
    with monkeypatch.context() as patch:
        patch.setattr(WorkDir, "save", killing(WorkDir.save, 2))  # of the start, and of the first region
        with pytest.raises(KilledError):
            qcompile.compile(source, settings(work_dir=str(tmp_path)), samples(source, 60))
    monkeypatch.setattr(score_losses, "reconstruct", None)
    again = qcompile.compile(source, settings(work_dir=str(tmp_path), resume=True), samples(source, 60))
    assert again.plan.losses == whole.plan.losses and again.plan.regions == whole.plan.regions
    one, two = (result.model.SerializeToString(deterministic=True) for result in (whole, again))
    assert one == two
