from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from networks import network
from numpy.typing import NDArray

from qcompile.api import open_model
from qcompile.config import Config
from qcompile.errors import InputError
from qcompile.passes.check_data import CheckData, degenerate
from qcompile.passes.normalize_graph import NormalizeGraph
from qcompile.runtime.outputs import OutputKind

RANDOM = np.random.default_rng(0)
Data = dict[str, NDArray[Any]]


@pytest.mark.parametrize(
    ("outputs", "problem"),
    [
        (RANDOM.standard_normal((16, 10)), ""),
        (np.ones((16, 10)), "is the same for all of the first 16 samples"),
        (RANDOM.standard_normal((16, 10)) + 9 * np.eye(10)[3], "says class 3 for all of the first 16 samples"),
        (RANDOM.standard_normal((4, 10)) + 9 * np.eye(10)[3], ""),  # four of one class are no sign
        (RANDOM.standard_normal((16, 2)) + 9 * np.eye(2)[1], ""),  # nor is the common one of two classes
        (RANDOM.standard_normal((1, 10)), ""),
        (np.zeros((16, 10), np.int64), ""),
        (np.float32(3), ""),
        (np.zeros((16, 0, 4), np.float32), "is the same for all of the first 16 samples"),  # no boxes at all
    ],
)
def test_degenerate(outputs: NDArray[Any], problem: str) -> None:
    assert degenerate(np.asarray(outputs), OutputKind.CLASSES) == problem


def test_an_embedding_says_no_class() -> None:
    values = RANDOM.standard_normal((16, 10)) + 9 * np.eye(10)[3]
    assert degenerate(values, OutputKind.VALUES) == ""


def test_first_batch_is_noted_and_nothing_else(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    model = open_model(residual_model, data=residual_data)
    assert CheckData().run(model) == 0
    assert [entry["what"] for entry in model.journal.entries] in (["first batch"], ["first batch", "warning"])
    assert "[16, 3, 8, 8]" in model.journal.entries[0]["inputs"][0]


def test_wrong_preprocessing_is_warned_about(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    model = open_model(residual_model, data={"image": np.full_like(residual_data["image"], 1e4)})
    CheckData().run(model)
    assert "check --preprocess" in model.journal.entries[-1]["text"]


def test_nan_in_an_output_is_an_error(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    residual_model.graph.node[-1].op_type = "Log"
    model = open_model(residual_model, data=residual_data)
    with pytest.raises(InputError, match="NaN or Inf on these samples in its output 'scores'"):
        CheckData().run(model)


def test_an_operator_that_the_runtime_lacks_is_bad_input(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    residual_model.graph.node[-1].domain = "example.custom"
    residual_model.opset_import.append(onnx.helper.make_opsetid("example.custom", 1))
    model = open_model(residual_model, data=residual_data)
    with pytest.raises(InputError, match="cannot load the model"):
        CheckData().run(model)


def test_without_data_there_is_nothing_to_check(residual_model: onnx.ModelProto) -> None:
    model = open_model(residual_model)
    assert CheckData().run(model) == 0
    assert not model.journal.entries


def test_labels_are_checked_before_the_work(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    labels = np.arange(40) % 5
    model = open_model(residual_model, data=residual_data, evaluation={**residual_data, "labels": labels})
    CheckData().run(model)
    model = open_model(residual_model, data=residual_data, evaluation={**residual_data, "labels": labels + 1})
    with pytest.raises(InputError, match="labels go from 1 to 5, the model has classes 0 to 4"):
        CheckData().run(model)
    del residual_model.graph.node[-3:]  # the outputs are feature maps now
    residual_model.graph.output[0].name = "pooled"
    residual_model.graph.output[0].type.tensor_type.ClearField("shape")
    model = open_model(residual_model, data=residual_data, evaluation={**residual_data, "labels": labels})
    with pytest.raises(InputError, match="cannot be compared with the outputs pooled"):
        CheckData().run(model)


def test_an_output_that_no_sample_reaches_is_no_sign() -> None:
    source = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N,4] x) => (float[N,2] y, float[1,2] prior)
    <float[1,4] a = {1,2,3,4}, float[4,2] b = {1,0,0,1,0,0,0,1}> {
        y = MatMul(x, b)   prior = MatMul(a, b)
    }""")
    model = open_model(source, data={"x": RANDOM.standard_normal((16, 4)).astype(np.float32)})
    NormalizeGraph().run(model)
    CheckData().run(model)
    assert [entry["what"] for entry in model.journal.entries if entry["what"] == "warning"] == []


def test_a_model_exported_in_training_mode_is_warned_about() -> None:
    text = """g (float[N,4] x, float[4,3] W, float[3] S, float[3] B, float[3] M) => (float[N,3] y) {
      h = MatMul(x, W)  v = Mul(S, S)  [norm] y, m, n = BatchNormalization<training_mode = 1>(h, S, B, M, v) }"""
    model = open_model(network(text), data=RANDOM.standard_normal((20, 4)).astype(np.float32))
    CheckData().run(model)
    (warning,) = (entry["text"] for entry in model.journal.entries if "training" in entry.get("text", ""))
    assert warning.startswith("norm: normalised as in training, so outputs depend on what else is in the batch; export")


def test_a_preprocessing_that_nothing_passes_is_told(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    def told(data: Data) -> list[str]:
        model = open_model(residual_model, Config(preprocess="imagenet-norm", threads=1), data)
        CheckData().run(model)
        return [entry["text"] for entry in model.journal.entries if "--preprocess has" in entry.get("text", "")]

    assert told(residual_data) == ["--preprocess has no effect: the data are no images (uint8), but ready inputs"]
    assert told({"image": RANDOM.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)}) == []
