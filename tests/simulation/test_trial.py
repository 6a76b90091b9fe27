"""Trials of changes that leave the function as it is: kept where they help, put back to the bit where they hurt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import PLACEMENT, network, run
from numpy.typing import NDArray
from onnx import numpy_helper

import qcompile
from qcompile import Config, QModel, open_model
from qcompile.calibration.ranges import Ranges
from qcompile.data.dataset import Dataset
from qcompile.errors import QCompileError
from qcompile.ir import Graph
from qcompile.passes.calibrate import Calibrate
from qcompile.passes.equalize_layers import EqualizeLayers
from qcompile.passes.fold_batch_norm import FoldBatchNorm
from qcompile.passes.insert_qdq import InsertQDQ
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.passes.rotate_channels import RotateChannels
from qcompile.passmanager import Pass
from qcompile.quant.plan import Edge, Form, NodePlan, Plan
from qcompile.runtime.session import Session
from qcompile.simulation import trial as trials
from qcompile.simulation.numbers import choose_numbers
from qcompile.simulation.stretches import OutputError
from qcompile.simulation.trial import SERVED, Place, at_8_bits, change_where_better, total, trial
from qcompile.targets.schema import Target

PLACED: tuple[Pass, ...] = (NormalizeGraph(), FoldBatchNorm(), *PLACEMENT)

# Depthwise blocks with PRelu, an embedding behind. The channels of `f` are those between two layers without an
# activation: what equalising and rotating change.
FACE = """net (float[N,3,16,16] x, float[8,3,3,3] A, float[8] B, float[8,1,3,3] D, float[8] E, float[12,8,1,1] F,
  float[12] K, float[16,12,1,1] G, float[16] H, float[16,1,16,16] I, float[6,16,1,1] J, float[8,1,1] P, float[8,1,1] Q,
  float[16,1,1] R) => (float[N,6,1,1] y) {
  [stem] a = Conv<pads = [1,1,1,1]>(x, A, B)  [prelu1] b = PRelu(a, P)
  [depthwise] d = Conv<pads = [1,1,1,1], group = 8>(b, D, E)  [prelu2] e = PRelu(d, Q)
  [project] f = Conv(e, F, K)  [expand] g = Conv(f, G, H)  [prelu3] h = PRelu(g, R)
  [pool] i = Conv<group = 16>(h, I)  [embed] y = Conv(i, J)
}"""
SPREAD = 10.0 ** np.linspace(-1.5, 1.5, 12)


def face(project: NDArray[Any], bias: NDArray[Any] | float, expand: NDArray[Any]) -> onnx.ModelProto:
    """Return the face network: `project` [12, 8] and `expand` [12] multiply the weights around `f`, `bias` is added."""
    source = network(FACE)
    weights = {item.name: item for item in source.graph.initializer}
    for name, factor in (("F", project[:, :, None, None]), ("G", expand[None, :, None, None])):
        values = (numpy_helper.to_array(weights[name]) * factor).astype(np.float32)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    weights["K"].CopyFrom(numpy_helper.from_array(np.full(12, bias, np.float32), "K"))
    return source


def hurt() -> onnx.ModelProto:
    """Values between that are alike, by weights or by biases: with equal weights they would differ."""
    small = np.arange(12) % 2 == 0
    return face(np.where(small, 0.01, 1)[:, None].repeat(8, 1), np.where(small, 1.0, 0.0), np.ones(12))


def helped() -> onnx.ModelProto:
    """Values between that differ by a factor of 1000, and weights behind that make up for it."""
    return face(SPREAD[:, None].repeat(8, 1), 0.0, 1 / SPREAD)


def prepared(source: onnx.ModelProto, *passes: Pass, **settings: Any) -> QModel:
    data = np.random.default_rng(1).normal(size=(48, 3, 16, 16)).astype(np.float32)
    model = open_model(source, Config(**{"threads": 1, **settings}), {"x": data})
    run(model, (*PLACED, *passes))
    return model


def error(model: QModel) -> float:
    """Return the squared error of the file on other samples, as a share of the outputs' power."""
    Calibrate().run(model)
    InsertQDQ().run(model)
    assert model.emitted is not None
    feeds = {"x": np.random.default_rng(2).normal(size=(64, 3, 16, 16)).astype(np.float32)}
    exact, found = (Session(source, threads=1).run(feeds)["y"] for source in (model.source, model.emitted))
    return float(np.square(exact - found).sum() / np.square(exact).sum())


def weights(model: QModel) -> dict[str, bytes]:
    """Return the weights around the channels in question."""
    return {
        node.name: b"".join(np.asarray(tensor.values).tobytes() for tensor in node.inputs[1:])
        for node in model.graph.nodes
        if node.name in ("project", "expand")
    }


def rare() -> onnx.ModelProto:
    """Few large weights among small ones: rotated, they are all alike."""
    few = np.random.default_rng(3).random((12, 8)) < 0.15
    return face(np.where(few, 10.0, 1.0), 0.0, np.ones(12))


CASES = [(helped(), EqualizeLayers(), 8), (helped(), EqualizeLayers(), 4), (rare(), RotateChannels(), 4)]


@pytest.mark.parametrize("source, item, bits", CASES, ids=["equal-8", "equal-4", "rotated-4"])
def test_what_helps_stays(source: onnx.ModelProto, item: Pass, bits: int) -> None:
    narrow = (("project|expand", bits, 8),)
    plain, changed = prepared(source, bits=narrow), prepared(source, item, bits=narrow)
    assert weights(changed) != weights(plain)
    assert changed.plan.untouched == [] and not [e for e in changed.journal.entries if e["what"] == "undone"]
    old, new = (trial(model, [["project", "expand"]]) for model in (plain, changed))
    assert old is not None and new is not None
    assert total(new[0]) < 0.9 * total(old[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_rotating_that_hurts_is_undone_to_the_bit(bits: int) -> None:
    """Channels that are as much larger in front as their weights behind are smaller: mixed, the small ones are lost."""
    plain, forced, judged = (
        prepared(helped(), *passes, w=bits, a=8) for passes in ((), (RotateChannels(frozenset()),), (RotateChannels(),))
    )
    (note,) = [entry for entry in judged.journal.by("rotate-channels") if entry["what"] == "undone"]
    assert note["node"] == "f" and note["after"] > note["before"]
    assert weights(judged) == weights(plain) != weights(forced)


def test_equalising_that_hurts_is_undone_to_the_bit() -> None:
    narrow = (("project|expand", 8, 4),)
    plain, forced, judged = (
        prepared(hurt(), *passes, bits=narrow) for passes in ((), (EqualizeLayers(frozenset()),), (EqualizeLayers(),))
    )
    note = next(entry for entry in judged.journal.by("equalize-layers") if entry.get("node") == "project")
    assert note["what"] == "undone" and note["after"] > note["before"]
    assert "project" in judged.plan.untouched
    assert weights(judged) == weights(plain) != weights(forced)
    assert error(judged) < 0.5 * error(forced)


def test_what_8_bits_serve_is_left_alone() -> None:
    plain, judged = prepared(hurt()), prepared(hurt(), EqualizeLayers())
    note = next(entry for entry in judged.journal.by("equalize-layers") if entry["what"] == "left alone")
    assert "project" in note["nodes"] and "project" in judged.plan.untouched
    assert weights(judged) == weights(plain)
    (errors,) = trial(plain, [["project", "expand"]]) or []
    assert total(errors) <= SERVED


@pytest.mark.parametrize("shares, tried", [([2e-3, 2e-3, 2e-3], False), ([1e-3, 4e-3], True)])
def test_every_output_counts_by_itself(shares: list[float], tried: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream over many blocks has many readers: it is not served worse for that."""
    model, one = prepared(hurt()), np.ones(1)
    errors = [OutputError(f"t{k}", -1, one, one * share, 1.0, False) for k, share in enumerate(shares)]
    changes: list[str] = []
    place = Place("f", frozenset(["project"]), lambda: (changes.append("f") or 1, []))
    monkeypatch.setattr(trials, "trial", lambda *_, **__: [errors])
    change_where_better(model, "rotate-channels", [place], None)
    assert changes == ["f"] * tried and model.plan.untouched == ["f"] * (not tried)


def test_a_stretch_that_is_served_is_not_tried_by_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = prepared(hurt()), list[list[frozenset[str]]]()

    def counted(model: QModel, stretches: list[frozenset[str]], **settings: Any) -> Any:
        tried.append(stretches)
        return trial(model, stretches, **settings)

    monkeypatch.setattr(trials, "trial", counted)
    RotateChannels().run(model)
    EqualizeLayers().run(model)
    assert sum(stretches.count(frozenset(["project", "expand"])) for stretches in tried) == 1
    assert {"f", "project"} <= set(model.plan.untouched) and weights(model) == weights(prepared(hurt()))


def test_a_plan_that_says_so_leaves_places_untouched_without_samples() -> None:
    plain, told = prepared(hurt()), prepared(hurt(), EqualizeLayers(frozenset(["project"])))
    assert weights(told) == weights(plain)
    told = prepared(hurt(), EqualizeLayers(frozenset(["another"])))
    assert weights(told) != weights(plain)


def test_a_run_from_a_saved_plan_gives_the_same_file(tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(1).normal(size=(24, 3, 16, 16)).astype(np.float32)}
    made = qcompile.compile(helped(), Config(threads=1, placement="all"), data)
    assert made.plan.untouched
    made.save(tmp_path / "out.onnx", plan=tmp_path / "plan.npz")
    again = qcompile.compile(helped(), Config(threads=1), plan=tmp_path / "plan.npz")
    assert again.plan.untouched == made.plan.untouched
    assert again.model.graph.SerializeToString() == made.model.graph.SerializeToString()


def test_without_samples_nothing_is_judged() -> None:
    model = prepared(hurt())
    model.data = None
    EqualizeLayers().run(model)
    assert weights(model) != weights(prepared(hurt())) and model.plan.untouched == []


@pytest.mark.parametrize("source", [hurt(), helped(), rare()])
def test_each_place_errs_no_more_than_before(source: onnx.ModelProto) -> None:
    models = prepared(source), prepared(source, RotateChannels(), EqualizeLayers())
    old, new = (trial(model, [["project", "expand"]]) for model in models)
    assert old is not None and new is not None
    assert total(new[0]) <= total(old[0])


def test_a_trial_that_fails_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise QCompileError("a kernel refuses its scales")

    monkeypatch.setattr(trials, "open_stretches", refuse)
    forced, judged = (prepared(helped(), EqualizeLayers(known), w=4, a=4) for known in (frozenset[str](), None))
    assert weights(judged) == weights(forced)  # what is not known to hurt is done
    failed = [entry for entry in judged.journal.by("equalize-layers") if entry["what"] == "trial failed"]
    assert failed and failed[0]["reason"] == "a kernel refuses its scales"


def test_a_trial_changes_nothing() -> None:
    model = prepared(helped(), w=4, a=4)
    before = (dict(model.plan.nodes), dict(model.plan.groups), dict(model.plan.specs), weights(model))
    assert trial(model, [["project"]]) is not None
    assert before == (model.plan.nodes, model.plan.groups, model.plan.specs, weights(model))
    assert model.plan.quantizers == {} and model.plan.weights == {}


def test_at_8_bits_everything_is_wide() -> None:
    model = prepared(face(np.ones((12, 8)), 0.0, np.ones(12)), w=3, a=2)
    wide = at_8_bits(model.plan, model.target)
    assert {spec.bits for spec in wide.specs.values()} == {8}
    assert {(node.weight_bits, node.input_bits) for node in wide.nodes.values()} == {(0, 0), (8, 8)}
    errors = [trial(model, [["expand"]], plan) for plan in (model.plan, wide)]
    assert errors[0] is not None and errors[1] is not None
    assert total(errors[1][0]) < 0.05 * total(errors[0][0])


def test_what_no_reader_tells_apart_is_no_error() -> None:
    """HardSwish reads values of which nearly all lie far below -3: a file cuts them off there, a trial does not."""
    text = """net (float[N,3,16,16] x, float[8,3,3,3] W1, float[8,8,1,1] W2) => (float[N,8,P,Q] y)
      <float[8,1,1] low = {-90, -2, -70, -1, -80, 0, -60, 1}> {
      [conv1] a = Conv(x, W1)  [shift] b = Add(a, low)  [swish] c = HardSwish(b)  [conv2] y = Conv(c, W2) }"""
    model = prepared(network(text))
    ((found,),) = trial(model, [["conv1", "shift"]], at_8_bits(model.plan, model.target)) or []
    assert found.share < SERVED
    Calibrate().run(model)
    assert model.plan.quantizers[Edge("b")].low > -4


@pytest.mark.parametrize(("times", "count"), [(1, 16), (2, 24)])
def test_a_trial_that_is_held_against_a_limit_takes_more_samples(
    times: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them choose numbers; there are 48, less those that are held back, of which no trial takes any."""
    model, seen = prepared(face(np.ones((12, 8)), 0.0, np.ones(12))), list[int]()

    def choose(graph: Graph, plan: Plan, ranges: Ranges, data: Dataset, **facts: Any) -> list[str]:
        seen.append(data.count)
        return choose_numbers(graph, plan, ranges, data, **facts)

    monkeypatch.setattr(trials, "choose_numbers", choose)
    assert trial(model, [["project", "expand"]], times=times)
    assert model.data is not None and seen == [min(count, -(-model.data.count // 2))], model.data.count


def test_at_8_bits_inputs_that_are_float_stay_so() -> None:
    nodes = {"a": NodePlan(Form.COMPUTE, "", 4, 32), "b": NodePlan(Form.COMPUTE, "", 4, 2), "c": NodePlan(Form.FLOAT)}
    wide = at_8_bits(Plan(nodes=nodes), Target.load("tensorrt")).nodes
    assert [(node.weight_bits, node.input_bits) for node in wide.values()] == [(8, 32), (8, 8), (0, 0)]
