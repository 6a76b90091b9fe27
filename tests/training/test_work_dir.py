"""The state of training on disk: a killed run goes on, and what does not fit is refused."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from networks import NETWORKS, network, samples
from training_runs import assert_same, calibrated, trained, units

from qcompile import Config, InputError, QModel, open_model
from qcompile.quant.plan import Form, NodePlan
from qcompile.quant.plan_file import save_plan
from qcompile.training.recipe import Training
from qcompile.training.reconstruction import reconstruct
from qcompile.training.work_dir import LOCK, PLAN, STATE, VALUES, open_work_dir


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
        ({"threads": 2}, "made with --threads 1, not 2"),  # sums in another order
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


def test_a_run_that_looks_into_its_folder_again_keeps_others_out(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    other = f"import fcntl; fcntl.lockf(open({str(tmp_path / LOCK)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def gets_in() -> bool:
        return subprocess.run([sys.executable, "-c", other], capture_output=True, check=False).returncode == 0

    model = calibrated(work_dir=str(tmp_path))
    held = open_work_dir(model)
    assert open_work_dir(model) is not None  # and is gone, as that of score-losses is before it trains
    assert not gets_in()
    del held
    assert gets_in()


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
