"""Passes run by hand, and passes of a user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

import qcompile
from qcompile import Config, PassManager, QCompileError, QModel, build
from qcompile.pipeline import build_placement

Data = dict[str, NDArray[Any]]
W4A4 = Config(w=4, a=4, threads=1)


def test_passes_run_by_hand_like_compile(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    opened = qcompile.open_model(residual_model, W4A4, residual_data)
    PassManager(build(W4A4)).run(opened)
    assert opened.emitted is not None
    expected = qcompile.compile(residual_model, W4A4, residual_data).model
    assert opened.emitted.SerializeToString() == expected.SerializeToString()


@dataclass(frozen=True)
class WidenSmallLayers:
    """A user's pass: compute nodes with few weights keep 8 bits."""

    limit: int

    name: ClassVar[str] = "widen-small-layers"
    requires: ClassVar[tuple[str, ...]] = ("assign-bits",)

    def run(self, model: QModel) -> int:
        small = [
            node.name for node in model.graph.nodes if node.op == "Conv" and node.inputs[1].values.size <= self.limit
        ]
        for name in small:
            model.plan.nodes[name] = replace(model.plan.nodes[name], weight_bits=8, input_bits=8)
        model.journal.note(self.name, "widened", nodes=small)
        return len(small)


def test_a_users_pass_takes_its_place(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    passes = list(build(W4A4))
    place = next(index for index, item in enumerate(passes) if item.name == "assign-bits")
    passes.insert(place + 1, WidenSmallLayers(limit=8 * 8 * 9))
    opened = qcompile.open_model(residual_model, W4A4, residual_data)
    seen: list[str] = []
    PassManager(passes).run(opened, watch=lambda run, model: seen.append(run.name))
    assert opened.plan.nodes["branch"].weight_bits == 8
    assert seen == [item.name for item in passes]


class CountThreads:
    """A user's pass that looks how many threads numpy's matrix products take."""

    name: ClassVar[str] = "count-threads"
    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.found: set[int] = set()

    def run(self, model: QModel) -> int:
        self.found |= {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        return 0


def test_passes_multiply_matrices_on_one_thread(residual_model: onnx.ModelProto) -> None:
    counting = CountThreads()
    with threadpool_limits(2, user_api="blas"):
        PassManager((counting,)).run(qcompile.open_model(residual_model))
        assert counting.found <= {1}  # none where numpy brings a library that has no switch
        assert all(pool["num_threads"] == 2 for pool in threadpool_info() if pool["user_api"] == "blas")


@dataclass(frozen=True)
class Configure:
    """A user's pass that changes what no pass reads any more."""

    name: ClassVar[str] = "configure"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        model.config = replace(model.config, w=2)
        return 1


def test_a_configuration_that_is_changed_too_late_is_an_error(
    residual_model: onnx.ModelProto, residual_data: Data
) -> None:
    with pytest.raises(QCompileError, match="pass 'configure' changes the configuration, which decides nothing"):
        PassManager((Configure(), *build(W4A4))).run(qcompile.open_model(residual_model, W4A4, residual_data))


@dataclass(frozen=True)
class Narrow:
    """A user's pass that comes too late: the quantizers are placed."""

    field: str

    name: ClassVar[str] = "narrow"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: QModel) -> int:
        model.plan.nodes["branch"] = replace(model.plan.nodes["branch"], **{self.field: 2})
        return 1


@pytest.mark.parametrize(
    ("place", "field", "found"), [("place-quantizers", "input_bits", 4), ("calibrate", "weight_bits", 4)]
)
def test_bits_that_would_have_no_effect_are_an_error(
    residual_model: onnx.ModelProto, residual_data: Data, place: str, field: str, found: int
) -> None:
    config = Config(w=4, a=4, method="rtn", threads=1)
    passes = list(build(config))
    passes.insert(1 + next(index for index, item in enumerate(passes) if item.name == place), Narrow(field))
    what = field.replace("_bits", "")
    text = f"pass 'narrow' leaves node 'branch' with 2 {what} bits, but a quantizer of {found}; put it before place"
    with pytest.raises(QCompileError, match=text):
        PassManager(passes).run(qcompile.open_model(residual_model, config, residual_data))


def test_passes_of_ones_own_have_a_report(residual_model: onnx.ModelProto) -> None:
    model = qcompile.open_model(residual_model)
    runs = PassManager(build_placement(Config())).run(model)
    result = qcompile.Result.of(model, runs, "mine.onnx")
    assert result.report["model"]["name"] == "mine.onnx"
    assert [row["name"] for row in result.report["passes"]] == [run.name for run in runs]
    assert {**qcompile.report(model, runs), "model": result.report["model"]} == result.report
    assert qcompile.report(model) == {**qcompile.report(model, runs), "passes": []}
