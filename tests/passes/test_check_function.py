"""A float graph that is no longer its source is no file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompile.api import compile, open_model
from qcompile.errors import InputError, QCompileError
from qcompile.passes.check_function import CheckFunction
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.qmodel import QModel

Data = dict[str, NDArray[Any]]


def test_an_equal_graph_passes(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    model = open_model(residual_model, data=residual_data)
    assert CheckFunction().run(model) == 0 and not model.journal.entries


def test_without_data_nothing_is_run(residual_model: onnx.ModelProto) -> None:
    assert CheckFunction().run(open_model(residual_model)) == 0


def test_a_graph_that_computes_something_else_is_our_error(
    residual_model: onnx.ModelProto, residual_data: Data
) -> None:
    model = open_model(residual_model, data=residual_data)
    next(node for node in model.graph.nodes if node.op == "Relu").op = "Abs"
    with pytest.raises(QCompileError, match=r"tensor 'start' has a relative error of 1\.1; please report it") as caught:
        CheckFunction().run(model)
    assert not isinstance(caught.value, InputError)


def test_a_wrong_rewrite_is_found_by_every_compilation(
    residual_model: onnx.ModelProto, residual_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = NormalizeGraph.run

    def wrong(item: NormalizeGraph, model: QModel) -> int:
        changed = right(item, model)
        next(node for node in model.graph.nodes if node.op == "Relu").op = "Abs"
        return changed

    monkeypatch.setattr(NormalizeGraph, "run", wrong)
    with pytest.raises(QCompileError, match="changed what the model computes: tensor 'start'"):
        compile(residual_model, data={name: np.array(array) for name, array in residual_data.items()})
