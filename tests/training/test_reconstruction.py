"""Training piece after piece: failures stay where they are, memory changes nothing, a killed run goes on."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from networks import CORRECT, NETWORKS, compiled, network, run, samples
from numpy.typing import NDArray

from qcompile import Config, InputError, QModel, open_model
from qcompile.execution.spool import Spool
from qcompile.passes.partition_units import PartitionUnits
from qcompile.progress import listening
from qcompile.quant.plan import Form, NodePlan, Plan
from qcompile.quant.plan_file import save_plan
from qcompile.training import loop, recipe, reconstruction, region
from qcompile.training.engines import open_trainer
from qcompile.training.pieces import Piece, cut_layers, join_units, regions_of
from qcompile.training.recipe import Settings, Training
from qcompile.training.reconstruction import Outcome, memory_of, reconstruct
from qcompile.training.region import Region
from qcompile.training.work_dir import LOCK, PLAN, STATE, VALUES, open_work_dir

DECIDE = (CORRECT[0], PartitionUnits(), *CORRECT[1:])
SETTINGS: dict[str, Any] = {"w": 3, "a": 4, "method": "qdrop", "steps": 6}


def calibrated(name: str = "residual", **settings: Any) -> QModel:
    source = network(NETWORKS[name])
    model = open_model(source, Config(**{"threads": 1} | SETTINGS | settings), samples(source, 60))
    run(model, DECIDE)
    return model


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


def units(model: QModel) -> list[Piece]:
    return join_units(model.plan, regions_of(model.plan))


def trained(model: QModel, **facts: Any) -> list[Outcome]:
    pieces, training = facts.pop("pieces", None) or units(model), Training.of(model.config)
    return list(reconstruct(model, pieces, training, work_dir=open_work_dir(model), **facts))


def assert_same(one: Plan, two: Plan) -> None:
    assert one.quantizers == two.quantizers and list(one.weights) == list(two.weights)
    for name, weight in one.weights.items():
        for field in ("codes", "scale", "step", "offset"):
            np.testing.assert_array_equal(getattr(weight, field), getattr(two.weights[name], field))
    for name, bias in one.biases.items():
        np.testing.assert_array_equal(bias, two.biases[name])


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


# --- resuming


class Killed(BaseException):
    """What ends a run without any chance to clean up."""


def until_killed(model: QModel, outcomes: int) -> None:
    run = reconstruct(model, units(model), Training.of(model.config), work_dir=open_work_dir(model))
    for _ in range(outcomes):
        next(run)
    with pytest.raises(Killed):
        run.throw(Killed)


@pytest.mark.parametrize("outcomes", [1, 2, 3])
def test_a_run_that_ended_early_goes_on_to_the_same_plan(tmp_path: Path, outcomes: int) -> None:
    whole = calibrated()
    expected = trained(whole)
    until_killed(calibrated(work_dir=str(tmp_path)), outcomes)
    model = calibrated(work_dir=str(tmp_path), resume=True, memory="0B")  # the budget may change
    assert trained(model) == expected
    assert_same(model.plan, whole.plan)
    again = calibrated(work_dir=str(tmp_path), resume=True)  # nothing is left to do
    assert trained(again) == expected
    assert_same(again.plan, whole.plan)


def test_what_else_is_in_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "values").mkdir()
    for name in ("plan-4.npz", "state.json", "values/1"):
        (tmp_path / name).write_text("mine")
    trained(calibrated(work_dir=str(tmp_path), memory="0B"))
    assert {(tmp_path / name).read_text() for name in ("plan-4.npz", "state.json", "values/1")} == {"mine"}


def test_nothing_but_the_state_is_left(tmp_path: Path) -> None:
    until_killed(calibrated(work_dir=str(tmp_path), memory="0B"), 2)
    trained(calibrated(work_dir=str(tmp_path), memory="0B", resume=True))
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {LOCK, STATE, VALUES, PLAN.format(len(units(calibrated())))}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_state_before_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    expected = calibrated()
    trained(expected)
    calls = 0

    def full(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= 9:  # of two files and folders at the start and after each piece: within the third state
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    original = getattr(os if call == "fsync" else Path, call)
    with monkeypatch.context() as patch:
        patch.setattr(os if call == "fsync" else Path, call, full)
        calls = 0 if call == "fsync" else 4
        with pytest.raises(InputError, match="cannot write the state of training: No space left"):
            trained(calibrated(work_dir=str(tmp_path)))
    assert not list(tmp_path.glob(".*"))
    model = calibrated(work_dir=str(tmp_path), resume=True)
    trained(model)
    assert_same(model.plan, expected.plan)


def scaled(model: onnx.ModelProto) -> onnx.ModelProto:
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * 2
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    return model


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"w": 2}, "made with --w 3, not 2"),
        ({"steps": 7}, "made with --steps 6, not 7"),
        ({"steps": None, "effort": "fast"}, "made with --effort unset, not fast"),
        ({"method": "brecq"}, "made with --method qdrop, not brecq"),
    ],
)
def test_a_state_of_other_settings_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    with pytest.raises(InputError, match=message):
        open_work_dir(calibrated(work_dir=str(tmp_path), resume=True, **settings))


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    model = calibrated(work_dir=str(tmp_path), resume=True)
    model.source = scaled(model.source)
    with pytest.raises(InputError, match="another model or other weights"):
        open_work_dir(model)


@pytest.mark.parametrize("count", [40, 60])
def test_a_state_of_other_samples_is_refused(tmp_path: Path, count: int) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    source = network(NETWORKS["residual"])
    model = calibrated(work_dir=str(tmp_path), resume=True)
    model.data = open_model(source, model.config, samples(source, count, seed=5)).data
    with pytest.raises(InputError, match="made with other samples"):
        trained(model)


def test_an_unfinished_state_is_not_overwritten(tmp_path: Path) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    with pytest.raises(InputError, match=r"unfinished run.*--resume"):
        open_work_dir(calibrated(work_dir=str(tmp_path)))
    trained(calibrated(work_dir=str(tmp_path), resume=True))
    trained(calibrated(work_dir=str(tmp_path)))  # a finished one is


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    text = f"import fcntl; f = open({str(tmp_path / LOCK)!r}, 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{text}; input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match=r"another run is at work there .*another --work-dir"):
            open_work_dir(calibrated(work_dir=str(tmp_path)))
        other.kill()
    assert open_work_dir(calibrated(work_dir=str(tmp_path))) is not None


def test_what_a_killed_run_left_half_written_is_deleted(tmp_path: Path) -> None:
    for name in (STATE, PLAN.format(2)):
        (tmp_path / f".{name}.00112233").write_text("half")
    (tmp_path / ".4711-other").write_text("mine")
    open_work_dir(calibrated(work_dir=str(tmp_path)))
    assert {path.name for path in tmp_path.iterdir()} == {LOCK, ".4711-other"}


def test_no_room_for_values_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / VALUES).write_text("a file")
    with pytest.raises(InputError, match=r"cannot use the work folder: File exists \(.*values\)"):
        trained(calibrated(work_dir=str(tmp_path)))


@pytest.mark.parametrize("text", ["", "{}", '{"version": 0}', '{"version": 1, "plan": "p", "outcomes": []}'])
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(InputError, match=r"not a state|another version"):
        open_work_dir(calibrated(work_dir=str(tmp_path), resume=True))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda state: state["outcomes"][0].update(extra=1), "outcomes/0"),
        (lambda state: state["outcomes"][0].update(before="small"), "outcomes/0/before"),
        (lambda state: state["purpose"].update(pieces={}), "purpose/pieces"),
        (lambda state: state["purpose"].update(recipe=None), "purpose/recipe"),
        (lambda state: state.update(plan="../other.npz"), "plan"),
        (lambda state: state.update(outcomes=3), "outcomes"),
    ],
)
def test_wrong_types_in_a_state_are_named(tmp_path: Path, change: Callable[[Any], None], where: str) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    state = json.loads((tmp_path / STATE).read_text())
    change(state)
    (tmp_path / STATE).write_text(json.dumps(state))
    with pytest.raises(InputError, match=f"not a state of training .*: {where}: "):
        open_work_dir(calibrated(work_dir=str(tmp_path), resume=True))


def test_the_plan_in_a_state_must_fit(tmp_path: Path) -> None:
    until_killed(calibrated(work_dir=str(tmp_path)), 1)
    state = json.loads((tmp_path / STATE).read_text())
    model = calibrated(work_dir=str(tmp_path), resume=True)
    wrong = copy.deepcopy(model.plan)
    wrong.nodes["more"] = NodePlan(Form.FLOAT)
    save_plan(wrong, tmp_path / state["plan"], target="ort-cpu", fingerprint=model.fingerprint)
    with pytest.raises(InputError, match="does not fit the model: node 'more' is in only one"):
        trained(model)


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no state to go on from"):
        open_work_dir(calibrated(work_dir=str(tmp_path / "new"), resume=True))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="--work-dir"):
        Config(method="qdrop", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot use the work folder"):
        open_work_dir(calibrated(work_dir=str(tmp_path / "file")))
