"""`qcompile check`: one screen, JSON, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from command_line import Run
from rule_examples import BASES, EXAMPLES, parsed

from qcompile.checking.rules import RULES


@pytest.fixture
def files(folder: Path) -> Path:
    """The working folder with good.onnx and bad.onnx."""
    onnx.save(parsed(BASES["ort"]), folder / "good.onnx")
    onnx.save(next(item for item in EXAMPLES if item.code == "QC101").broken(), folder / "bad.onnx")
    return folder


@pytest.mark.usefixtures("files")
def test_a_clean_file(run: Run) -> None:
    ended = run("check", "good.onnx")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith("good.onnx: QDQ, opset 21, ") and lines[-1] == "good.onnx: clean for ort-cpu"
    assert any(line.startswith("Conv") and "int8 (7 bits used) symmetric, per channel" in line for line in lines)
    assert any("2 of 2 quantized layers on integers; 1 QuantizeLinear, 1 QLinearConv" in line for line in lines)


@pytest.mark.usefixtures("files")
def test_findings_are_named_and_end_with_1(run: Run) -> None:
    ended = run("check", "bad.onnx")
    assert ended.code == 1
    assert f"QC101 slow: {RULES['QC101'].title} (1)\n      conv: no QuantizeLinear stands behind it" in ended.out
    assert ended.out.splitlines()[-1] == (
        "bad.onnx: 1 finding for ort-cpu (1 slow); qcompile check --explain QC101 says more"
    )


@pytest.mark.usefixtures("files")
def test_other_targets_have_other_rules(run: Run) -> None:
    ended = run("check", "good.onnx", "--target", "tensorrt")
    assert ended.code == 1 and "QC302 wrong: uint8 codes" in ended.out and "QC101" not in ended.out


@pytest.mark.usefixtures("files")
def test_json_is_all_that_is_printed(run: Run) -> None:
    ended = run("check", "bad.onnx", "--json")
    assert ended.code == 1
    assert [item["code"] for item in json.loads(ended.out)["findings"]] == ["QC101"]


@pytest.mark.usefixtures("files")
def test_against_the_float_model(run: Run) -> None:
    assert run("in.onnx", "-o", "out.onnx", "--data", "calib.npz", "--threads", "1", "-q").code == 0
    ended = run("check", "out.onnx", "--against", "in.onnx", "--data", "calib.npz")
    assert ended.code == 0
    assert "of the float model" in ended.out and "scores against the float model, 40 samples: " in ended.out
    assert "speed against the float model: " in ended.out


def test_a_rule_is_explained(run: Run) -> None:
    ended = run("check", "--explain", "qc101")
    assert ended.code == 0 and ended.out.startswith("QC101: ") and "Mend: " in ended.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no file given; qcompile check FILE.onnx, or qcompile check --explain QC101"),
        (("--explain", "QC999"), "--explain QC999 is no rule; "),
        (("missing.onnx",), "missing.onnx"),
        (("calib.npz",), "not an ONNX model, or a truncated one (calib.npz)"),
        (("in.onnx",), "nothing in it is quantized (in.onnx); give a quantized file"),
        (("in.onnx", "--target", "ncnn"), "--target ncnn has no rules to check by; known: openvino, ort-cpu, tensorrt"),
        (("in.onnx", "--jsn"), "unknown flag --jsn; did you mean '--json'?"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    ended = run("check", *arguments)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert message in ended.err


def test_help_has_examples(run: Run) -> None:
    text = run("check", "--help").out
    assert "qcompile check file.onnx --target tensorrt --json" in text and "--explain CODE" in text
    assert "qcompile check file.onnx" in run("--help").out
