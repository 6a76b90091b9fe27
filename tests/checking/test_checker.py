"""A whole check: what it holds, for files of all forms."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from rule_examples import BASES, EXAMPLES, parsed

import qcompile
from qcompile.checking.checker import findings
from qcompile.checking.graph import QuantizedFile
from qcompile.checking.kernels import Kernels
from qcompile.checking.result import SCHEMA_VERSION, Check, Encoding
from qcompile.checking.rules import FUNCTIONS
from qcompile.errors import InputError

SCHEMA = json.loads(resources.files("qcompile.checking").joinpath("schema.json").read_text())


def checked(folder: Path, model: onnx.ModelProto, **settings: Any) -> Check:
    """Save a model and check it; what comes out fits the schema."""
    path = folder / "file.onnx"
    onnx.save(model, path)
    found = qcompile.check(path, **settings)
    jsonschema.validate(json.loads(json.dumps(asdict(found), allow_nan=False)), SCHEMA)
    return found


def example(code: str) -> onnx.ModelProto:
    return next(item for item in EXAMPLES if item.code == code).broken()


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == SCHEMA_VERSION


def test_what_is_quantized_and_how(tmp_path: Path) -> None:
    found = checked(tmp_path, parsed(BASES["ort"]))
    rows = {row.op: row for row in found.operators}
    assert rows["Conv"].weight == Encoding("int8", 7, True, "per channel")  # 60 - -50 in steps of 1
    assert rows["Conv"].data == Encoding("uint8", 8, True, "per tensor")
    assert rows["Gemm"].data == Encoding("uint8", 8, False, "per tensor")
    assert {op: (row.nodes, row.integer) for op, row in rows.items()} == {
        "Conv": (1, 1), "Gemm": (1, 1), "MaxPool": (1, 1), "Reshape": (1, 1)
    }  # fmt: skip
    assert (found.form, found.opset, found.findings) == ("QDQ", 21, [])
    assert found.verdict is not None and found.verdict.kernels["QLinearConv"] == 1


def test_a_file_of_ours_is_not_that_of_the_exporter(tmp_path: Path) -> None:
    model = parsed(BASES["ort"])
    model.producer_name, model.producer_version = "pytorch", "2.13"
    assert checked(tmp_path, model).producer == "pytorch 2.13"
    model.metadata_props.add(key="qcompile.version", value="0.1.0")
    assert checked(tmp_path, model).producer == "qcompile 0.1.0"


def test_without_the_runtime_the_rules_say_what_runs_on_integers(tmp_path: Path) -> None:
    found = checked(tmp_path, parsed(BASES["tensorrt"]), target="tensorrt")
    assert found.verdict is None and found.findings == []
    assert [(row.op, row.integer) for row in found.operators] == [("Conv", 2), ("Add", None)]
    missed = checked(tmp_path, example("QC404"), target="openvino")
    assert [(row.op, row.integer) for row in missed.operators][:2] == [("Conv", 0), ("Gemm", 1)]


def test_nothing_runs_in_a_file_that_is_refused(tmp_path: Path) -> None:
    found = checked(tmp_path, example("QC301"), target="tensorrt")
    assert {row.integer for row in found.operators} == {None}


def test_a_file_that_does_not_load_is_a_finding_with_the_message_of_the_runtime(tmp_path: Path) -> None:
    found = checked(tmp_path, example("QC134"))
    assert {item.code for item in found.faults} == {"QC110"}
    assert found.findings[-1].detail.startswith("Fatal error: other:Pool") and "tmp" not in found.findings[-1].detail


def test_a_layer_in_float_that_no_rule_explains_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "QC104", lambda file: ())
    found = checked(tmp_path, example("QC104"))
    assert [(item.code, item.node) for item in found.faults] == [("QC100", "conv")]


@pytest.mark.parametrize(("code", "integer"), [("QC102", True), ("QC121", False)])
def test_the_runtime_has_the_last_word(code: str, integer: bool) -> None:
    """Another version may run on integers what this one does not, and the other way round."""
    file = QuantizedFile(example(code))
    kernels = Kernels(file)
    assert code in {item.code for item in findings(file, "ort-cpu", kernels)}
    kernels.integer["conv"] = integer
    assert code not in {item.code for item in findings(file, "ort-cpu", kernels)}


def test_agreement_size_and_speed(
    tmp_path: Path, residual_model: onnx.ModelProto, residual_data: dict[str, NDArray[Any]]
) -> None:
    onnx.save(residual_model, tmp_path / "in.onnx")
    result = qcompile.compile(residual_model, qcompile.Config(threads=1), residual_data)
    found = checked(tmp_path, result.model, against=tmp_path / "in.onnx", data=residual_data)
    assert found.faults == []
    assert found.agreement is not None and found.agreement.outputs["scores"]["sqnr_db"] > 20
    assert found.speed is not None and found.float_bytes == (tmp_path / "in.onnx").stat().st_size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "tensort"}, "--target tensort has no rules to check by; did you mean 'tensorrt'?"),
        ({"against": "in.onnx"}, "a comparison needs both the float model and samples"),
        ({"data": "calib.npz"}, "a comparison needs both the float model and samples"),
    ],
)
def test_bad_requests(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        checked(tmp_path, parsed(BASES["ort"]), **settings)


def test_a_float_model_is_no_quantized_file(tmp_path: Path, residual_model: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match="nothing in it is quantized"):
        checked(tmp_path, residual_model)


def test_another_float_model_is_refused(tmp_path: Path, residual_model: onnx.ModelProto) -> None:
    onnx.save(residual_model, tmp_path / "in.onnx")
    with pytest.raises(InputError, match="no input 'image'"):
        checked(tmp_path, parsed(BASES["ort"]), against=tmp_path / "in.onnx", data={"x": np.zeros((1, 2, 4, 4))})
