"""Training piece after piece: failures stay where they are, and memory changes nothing."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from networks import compiled, network
from numpy.typing import NDArray
from training_runs import DECIDE, SETTINGS, assert_same, calibrated, trained, units

from qcompile import Config, QModel
from qcompile.execution.spool import Spool
from qcompile.progress import listening
from qcompile.training import loop, recipe, reconstruction, region
from qcompile.training.engines import open_trainer
from qcompile.training.pieces import Piece, cut_layers, join_units
from qcompile.training.recipe import Settings, Training
from qcompile.training.reconstruction import memory_of, reconstruct
from qcompile.training.region import Region


class Spied:
    """A trainer that is watched, and whose losses may be changed."""

    made: ClassVar[list[Spied]]
    loss: ClassVar[Callable[[Spied, float], float]]

    def __init__(self, region: Region, training: Training, threads: int) -> None:
        self.inner, self.steps = open_trainer(region, training, threads), 0
        self.region = self.inner.region
        self.masks: list[list[NDArray[Any]]] = []
        self.made.append(self)
        self.number = len(self.made)

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        return self.inner.state

    def reset(self) -> None:
        self.steps = 0
        self.inner.reset()

    def run(self, feeds: dict[str, NDArray[Any]], settings: Settings, unit_error: float) -> float:
        self.steps += 1
        self.masks.append([feeds[name] for name in self.region.masks])
        return type(self).loss(self, self.inner.run(feeds, settings, unit_error))

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> type[Spied]:
    """The class of every trainer of this test."""
    kind = type("Spied", (Spied,), {"made": [], "loss": lambda trainer, loss: loss})
    monkeypatch.setattr(loop, "open_trainer", kind)
    return kind


# --- what a run does


def test_a_model_with_a_copy_of_the_plan_gives_the_losses_alone() -> None:
    model = calibrated()
    before = copy.deepcopy(model.plan)
    tried = replace(model, plan=copy.deepcopy(model.plan), config=replace(model.config, steps=2))
    outcomes = trained(tried, title="score")
    assert [outcome.piece for outcome in outcomes] == [piece.name for piece in units(model)]
    assert all(outcome.before is not None and outcome.after is not None for outcome in outcomes)
    assert_same(model.plan, before)


def test_random_choices_depend_on_the_piece_alone(spied: type[Spied]) -> None:
    """Whether the first one was trained, or stopped at once, changes nothing in what the others draw."""
    trained(calibrated())
    whole, spied.made = spied.made, []
    spied.loss = lambda trainer, loss: math.nan if trainer.number == 1 else loss
    assert trained(calibrated())[0].what == "not trained"
    for one, two in zip(whole[1:], spied.made[1:], strict=True):
        np.testing.assert_equal(one.masks, two.masks)
    assert len(whole[0].masks) > len(spied.made[0].masks)


@pytest.mark.parametrize("name", ["residual", "concat", "squeeze_excite", "joined", "shared_weight"])
def test_adaround_trains_every_layer_by_itself(name: str) -> None:
    model = calibrated(name, method="adaround")
    outcomes = trained(model, pieces=cut_layers(model.graph))
    assert {outcome.piece for outcome in outcomes} == set(model.plan.weights)


def test_a_quantizer_that_has_made_codes_keeps_its_scale() -> None:
    """Concat of equal ranges: both layers in front of it share one quantizer, which the first of them may train."""
    source = network(
        """net (float[N,3,8,8] x, float[4,3,1,1] A, float[4,4,1,1] B, float[4,8,1,1] C) => (float[N,4,P,Q] y) {
          [stem] a = Conv(x, A)  [relu] b = Relu(a)  [left] c = Conv(b, B)  [relu_l] d = Relu(c)
          [right] e = Conv(b, B)  [relu_r] f = Relu(e)  [join] g = Concat<axis = 1>(d, f)  [head] y = Conv(g, C)
        }"""
    )
    model = compiled(source, DECIDE, **SETTINGS | {"a": 3, "method": "adaround", "steps": 200})
    shared = model.plan.key("d")
    assert shared == model.plan.key("f") == model.plan.key("g")  # else this test shows nothing
    wide = model.plan.quantizers[shared]
    model.plan.quantizers[shared] = replace(wide, scale=4 * wide.scale)  # so that there is something to train
    seen: dict[str, float] = {}
    for outcome in reconstruct(model, cut_layers(model.graph), Training.of(model.config)):
        seen[outcome.piece] = model.plan.quantizers[shared].scale
    assert seen["stem"] != seen["left"] == seen["right"] == seen["head"]


SHAPES = """net (float[N,3,8,8] x, float[4,3,3,3] A, float[4,4,1,1] B, float[4,4,1,1] C) => (float[N,4,P,Q] y)
  <int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}> {
    [stem] a = Conv<pads = [1,1,1,1]>(x, A)  [relu] b = Relu(a)
    [pool] p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(b)  [low] c = Conv(p, B)
    [shape] s = Shape(b)  [tall] h = Slice(s, two, four)  [shape2] r = Shape(c)
    [count] n = Slice(r, zero, two)  [sizes] t = Concat<axis = 0>(n, h)
    [up] u = Resize<mode = "nearest">(c, , , t)  [add] v = Add(u, b)  [head] y = Conv(v, C)
  }"""


@pytest.mark.parametrize("cut", [units, lambda model: cut_layers(model.graph)])
def test_shape_arithmetic_that_several_pieces_share(cut: Callable[[QModel], list[Piece]]) -> None:
    model = compiled(SHAPES, DECIDE, **SETTINGS)
    assert [outcome.reason for outcome in trained(model, pieces=cut(model))] == [""] * 3


def test_a_loss_that_is_not_finite_stops_its_piece_alone(spied: type[Spied]) -> None:
    """The second unit sees NaN at its fifth step, the third before its first: both end as if they never took one."""
    never = calibrated(steps=8)
    spied.loss = lambda trainer, loss: math.nan if (trainer.number, trainer.steps) in ((2, 1), (3, 1)) else loss
    trained(never)
    spied.made.clear()
    spied.loss = lambda trainer, loss: math.nan if (trainer.number, trainer.steps) in ((2, 5), (3, 1)) else loss
    model = calibrated(steps=8)
    outcomes = trained(model)
    assert [outcome.what == "not trained" for outcome in outcomes] == [False, True, True]
    assert [outcome.reason for outcome in outcomes[1:]] == ["the loss is nan at step 5 of 8", "the loss is nan"]
    for node, weight in never.plan.weights.items():
        np.testing.assert_array_equal(model.plan.weights[node].codes, weight.codes)
        np.testing.assert_array_equal(model.plan.weights[node].scale, weight.scale)


def test_hardening_leaves_few_weights_undecided(spied: type[Spied], monkeypatch: pytest.MonkeyPatch) -> None:
    """Undecided: more than a tenth of a step away from both codes when training ends."""
    shares = []
    for stretch in (recipe.FIRST_STRETCH, recipe.LAST_STRETCH):
        monkeypatch.setattr(recipe, "LAST_STRETCH", stretch)
        spied.made.clear()
        trained(calibrated(steps=100))
        found = [each.state[name] for each in spied.made for name in each.region.parameters if "/rounding" in name]
        codes = np.concatenate([stretch * (1 / (1 + np.exp(-item)) - 0.5) + 0.5 for item in found], axis=None)
        shares.append(np.mean((codes > 0.1) & (codes < 0.9)))
    assert shares[0] > 2 * shares[1]


def test_the_pull_keeps_codes_where_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for strength in (0.0, 1e6):
        monkeypatch.setattr(region, "PULL", strength)
        model = calibrated(steps=200)
        before = {name: weight.codes.copy() for name, weight in model.plan.weights.items()}
        trained(model)
        moved.append(sum(int((model.plan.weights[name].codes != codes).sum()) for name, codes in before.items()))
    assert moved[0] > 10 * moved[1]


@pytest.mark.parametrize("method", ["qdrop", "mrecg", "brecq", "mrecg-brecq"])
def test_float_values_are_mixed_in_where_samples_do_not_determine_the_unit(spied: type[Spied], method: str) -> None:
    """Sixty samples have many values for each weight of the convolutions, and few for those of the last layer."""
    trained(calibrated("classifier", method=method))
    *convolutions, last = spied.made
    assert [trainer.region.quantized for trainer in convolutions] == [1.0, 1.0]
    assert not any(trainer.region.masks for trainer in convolutions)
    assert last.region.quantized == recipe.QUANTIZED[method][1]
    assert bool(last.region.masks) == (method in ("qdrop", "mrecg"))
    assert all(0.6 < mask.mean() < 0.9 for drawn in last.masks for mask in drawn)


def test_the_error_on_samples_of_training_is_known_too() -> None:
    """Six of them are fitted better than others."""
    model = calibrated("classifier", steps=200, w=2, first_last_bits=3)
    assert model.data is not None
    few = replace(model, data=model.data.take(0, 6), held_back=model.data.take(20, 54))
    outcomes = trained(few)
    assert [outcome.fitted is not None for outcome in outcomes] == [outcome.trained for outcome in outcomes]
    pairs = [(outcome.fitted, outcome.after) for outcome in outcomes if outcome.fitted and outcome.after]
    assert pairs and all(fitted < after for fitted, after in pairs)


def test_a_parameter_that_is_not_finite_is_not_stored(spied: type[Spied], monkeypatch: pytest.MonkeyPatch) -> None:
    nan = property(lambda self: dict.fromkeys(self.region.parameters, np.float32("nan")))
    monkeypatch.setattr(spied, "state", nan)
    assert {outcome.reason for outcome in trained(calibrated())} == {"a parameter is not finite after 6 steps"}


def test_large_biases_stay_out_of_the_log_domain() -> None:
    model = calibrated()
    node = next(node for node in model.graph.nodes if node.op == "Conv" and len(node.inputs) > 2)
    node.inputs[2].values = node.inputs[2].values + np.float32(1000)
    with np.errstate(over="raise"):
        outcomes = trained(model)
    assert any(outcome.trained for outcome in outcomes)
    assert max(np.abs(bias).max() for bias in model.plan.biases.values()) > 100


def test_progress_shows_piece_and_loss() -> None:
    heard: list[tuple[str, int, int | None, str]] = []
    model = calibrated()
    with listening(lambda *call: heard.append(call)):
        trained(model)
    names = [piece.name for piece in units(model)]
    done = [call[1] for call in heard]
    assert done == sorted(done) and heard[-1] == ("reconstruct", 18, 18, "")  # 3 units of 6 steps
    for number, name in enumerate(names):
        last = [call for call in heard if call[3].startswith(f"{name}: loss ")][-1]
        assert last[1] == 6 * number + 6
        assert re.fullmatch(r"\w+: loss \S+, now \d\.\d\d of it", last[3])


def test_a_region_has_the_steps_of_its_units(spied: type[Spied]) -> None:
    model = calibrated()
    heard: list[tuple[int, int | None]] = []
    names = [unit.name for unit in model.plan.units]
    with listening(lambda title, done, total, detail: heard.append((done, total))):
        trained(model, pieces=join_units(model.plan, [names[:2], names[2:]]))
    assert [trainer.steps for trainer in spied.made] == [12, 6]
    assert (12, 18) in heard and heard[-1] == (18, 18)


@pytest.mark.parametrize(("effort", "steps"), [("fast", 100), (None, 500), ("default", 500), ("max", 3000)])
def test_effort_is_a_number_of_steps(effort: Any, steps: int) -> None:
    assert Training.of(Config(method="qdrop", effort=effort)).steps == steps
    assert Training.of(Config(method="qdrop", effort=effort, steps=7)).steps == 7


# --- memory


@pytest.mark.parametrize("name", ["residual", "concat", "classifier"])
def test_the_budget_changes_nothing_in_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    put = Spool.put

    def watch(self: Spool, *arguments: Any) -> None:
        put(self, *arguments)
        written.append(self._files)

    monkeypatch.setattr(Spool, "put", watch)
    plans = []
    for memory in ("1GB", "5kB", "0B"):
        model = calibrated(name, memory=memory)
        written.clear()
        trained(model)
        assert (written[-1] == 0) == (memory == "1GB")
        plans.append(model.plan)
    assert_same(plans[0], plans[1])
    assert_same(plans[0], plans[2])


def test_without_a_budget_it_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    most = reconstruction.MOST_MEMORY
    for free, expected in ((2 << 30, 1 << 30), (1 << 40, most), (None, most)):
        monkeypatch.setattr(reconstruction, "free_memory", lambda free=free: free)
        assert memory_of(Training()) == expected
    assert memory_of(Training.of(Config(method="qdrop", memory="1.5MB"))) == 1_500_000
