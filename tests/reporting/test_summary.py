from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import qcompile
from qcompile.outcomes import Audit, FloatNode, Fused, Judged, LayerError, MissingKernel, Outcome, Size, Speed, Top1
from qcompile.quant.plan import Edge
from qcompile.reporting.summary import (
    SCHEMA_VERSION,
    advice,
    agreement_text,
    difference_text,
    shortened,
    speed_text,
    training_text,
    training_warnings,
    verdict,
    warnings,
)

SCHEMA = json.loads(resources.files("qcompile.reporting").joinpath("schema.json").read_text())
Data = dict[str, NDArray[np.float32]]


@pytest.fixture
def result(residual_model: onnx.ModelProto, residual_data: Data) -> qcompile.Result:
    return qcompile.compile(residual_model, qcompile.Config(w=4, a=4, steps=2, threads=1), residual_data)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema"]["const"] == SCHEMA_VERSION
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"])


def test_a_report_holds_what_the_schema_says(result: qcompile.Result) -> None:
    report = json.loads(result.report_text())
    jsonschema.validate(report, SCHEMA)
    assert {row["name"] for row in report["nodes"]} == {node.name for node in result.qmodel.graph.nodes}
    assert report["recipe"]["w"] == 4
    assert report["data"]["samples"] + report["data"]["held_back"] == 40
    assert [row["name"] for row in report["passes"]][-1] == "validate"
    assert all(row["peak_bytes"] >= 0 for row in report["passes"])


def test_weights_and_quantizers_are_those_of_the_plan(result: qcompile.Result) -> None:
    (branch,) = (row for row in result.report["weights"] if row["node"] == "branch")
    weight = result.plan.weights["branch"]
    assert (branch["bits"], branch["shape"]) == (4, [8, 8, 3, 3])
    assert branch["largest_scale"] == float(weight.scale.max())
    for row in result.report["quantizers"]:
        quantizer = result.plan.quantizers[Edge(row["tensor"], row["reader"])]
        assert row["high"] == pytest.approx(quantizer.scale * (quantizer.grid.high - quantizer.zero_point), rel=1e-12)


def test_every_float_node_has_its_reason(result: qcompile.Result) -> None:
    rows = [row for row in result.report["nodes"] if row["form"] == "float"]
    assert [row["name"] for row in rows] == ["scores"]
    assert rows[0]["reason"]


def test_a_report_about_a_float_graph(residual_model: onnx.ModelProto, residual_data: Data) -> None:
    result = qcompile.compile(residual_model, qcompile.Config(target="academic", threads=1), residual_data)
    report = json.loads(result.report_text())
    jsonschema.validate(report, SCHEMA)
    assert report["verdict"].startswith("w8a8 for academic, a float graph, ")
    assert report["audit"]["fused"] is report["audit"]["speed"] is None and report["warnings"] == []
    (unoptimized,) = report["audit"]["unoptimized"]["outputs"].values()
    assert unoptimized["sqnr_db"] is None or unoptimized["sqnr_db"] > 60  # the same values, or nearly


def test_a_plan_without_numbers_is_a_report_too(residual_model: onnx.ModelProto) -> None:
    report = json.loads(qcompile.plan_only(residual_model).report_text())
    jsonschema.validate(report, SCHEMA)
    assert report["audit"] == {}
    assert all("scale" not in row for row in report["quantizers"])


FIGURES = {
    "kind": "classes", "same": 0.75, "foreground": None, "standard_error": 0.02, "sqnr_db": 20.04, "cosine": 0.995,
    "least_cosine": 0.9, "relative_error": 0.1, "largest_difference": 1.0,
}  # fmt: skip
SPEED = Speed(1.5, 1.0, 1.5, 1.45, 1.55, 9, 1, 1)
AUDIT = Audit(
    onnxruntime="1.0",
    bits={},
    float_nodes=[],
    kernels={},
    fused=Fused(3, 3),
    size=Size(1000, 200),
    speed=SPEED,
    agreement=Judged(4, {"y": FIGURES}, held_back=4),
)


def test_the_verdict_is_one_line(result: qcompile.Result) -> None:
    text = verdict(result.qmodel, AUDIT)
    assert text == (
        "w4a4 for ort-cpu, 20 % of the float size, 1.50x the float speed,"
        " same class 75.0 %, SQNR 20.0 dB, cosine 0.9950 (least 0.9000) on 'y'"
    )


@pytest.mark.parametrize(
    "samples, held_back, text",
    [(12, 1, " (12 samples, 1 of them held back)"), (1, 0, " (1 calibration sample)"), (8, 8, "")],
)
def test_the_verdict_says_what_few_samples_it_rests_on(
    result: qcompile.Result, samples: int, held_back: int, text: str
) -> None:
    found = replace(AUDIT, agreement=Judged(samples, {"y": FIGURES}, held_back))
    assert verdict(result.qmodel, found).endswith(f"on 'y'{text}")


def test_top1_stands_in_the_verdict_where_labels_are(result: qcompile.Result) -> None:
    text = verdict(result.qmodel, replace(AUDIT, top1=Top1(9, 90.0, 88.5)))
    assert text.endswith("top-1 88.50 % (float 90.00 %, 9 samples)")


def test_a_slower_file_is_said_to_be_slower(result: qcompile.Result) -> None:
    slow = replace(AUDIT, speed=replace(SPEED, speedup=0.94, low=0.93, high=0.95))
    assert "SLOWER than float: 0.94x" in verdict(result.qmodel, slow)
    text = "the file is slower than its float model: 0.94x"
    assert text in warnings(result.qmodel, slow)
    blamed = replace(slow, float_nodes=[FloatNode("act", "Erf", "no integer kernel")])
    assert f"{text}; see the float nodes for why" in warnings(result.qmodel, blamed)
    assert not any("slower" in text for text in warnings(result.qmodel, AUDIT))


def test_a_file_that_is_as_fast_is_not_said_to_be_slower(result: qcompile.Result) -> None:
    even = replace(AUDIT, speed=replace(SPEED, speedup=0.996, low=0.99, high=1.0))
    assert "1.00x the float speed" in verdict(result.qmodel, even)
    assert not any("slower" in text for text in warnings(result.qmodel, even))


def test_a_wide_spread_of_speeds_is_told() -> None:
    assert speed_text(replace(SPEED, speedup=1.6, low=1.4, high=1.65)) == "1.60x"
    assert speed_text(replace(SPEED, speedup=1.6, low=1.2, high=2.1)) == "1.60x (half of the runs 1.20x to 2.10x)"


def test_a_node_without_its_kernel_is_named(result: qcompile.Result) -> None:
    found = replace(AUDIT, fused=Fused(4, 3, [MissingKernel("conv7", "Conv", "two quantizers behind it")]))
    assert any("'conv7'" in text and "two quantizers" in text for text in warnings(result.qmodel, found))


@pytest.mark.parametrize(
    "figures, text",
    [
        ({"foreground": 0.5}, "same class 75.0 %, 50.0 % beside the prevailing class, SQNR 20.0 dB"),
        ({"kind": "decisions"}, "same class 75.0 %, SQNR 20.0 dB"),
        ({"kind": "whole"}, "equal 75.0 %, SQNR 20.0 dB"),
        ({"kind": "values", "same": None}, "SQNR 20.0 dB, cosine 0.9950 (least 0.9000), relative error 0.1"),
        ({"kind": "decisions", "same": None, "sqnr_db": None}, "no figures"),
    ],
)
def test_agreement_says_what_its_kind_means(figures: dict[str, Any], text: str) -> None:
    without = {} if figures.get("kind") == "values" else {"cosine": None}
    assert agreement_text({**FIGURES, **without, **figures}) == text


def test_a_far_output_is_warned_about_with_flags_to_copy(result: qcompile.Result) -> None:
    """The stem has 8 bits, the branch 4."""
    layers = [LayerError("branch", 12.34), LayerError("stem", 15.0), LayerError("logits", 41.0)]
    (text,) = (text for text in warnings(result.qmodel, replace(AUDIT, worst_layers=layers)) if "differs" in text)
    assert text == (
        "'y' differs much from the float model (same class 75.0 %, SQNR 20.0 dB, cosine 0.9950 (least 0.9000));"
        " the layers that err most by themselves: 'branch' 12.3 dB, 'stem' 15.0 dB, 'logits' 41.0 dB;"
        " try --bits '^(branch)$=8,8', or --keep-float '^(stem)$', or --w 6, or --a 6, or more samples than 36"
    )


def test_of_several_outputs_the_farthest_has_figures(result: qcompile.Result) -> None:
    near, far = (
        {**FIGURES, "kind": "values", "sqnr_db": 40.0},
        {**FIGURES, "kind": "values", "same": None, "sqnr_db": 9.0},
    )
    outputs = {"a": near, "b": {**far, "sqnr_db": 15.0}, "c": far}
    found = replace(AUDIT, agreement=Judged(4, outputs, held_back=4))
    text = agreement_text(far)
    assert verdict(result.qmodel, found).endswith(f"{text} on 'c', the farthest of 3")
    (warning,) = (line for line in warnings(result.qmodel, found) if "differs" in line)
    assert warning.startswith(f"'c' differs much from the float model ({text}), and so do 'b'; try ")
    assert difference_text({"a": near}) == ""


@pytest.mark.parametrize(
    "config, steps",
    [
        (qcompile.Config(w=4, a=8, method="rtn"), ["--method mrecg", "--w 6"]),
        (qcompile.Config(w=8, a=8), ["--calibration-method mse"]),
        (qcompile.Config(w=8, a=8, calibration_method="mse"), ["--calibration-method max"]),
    ],
)
def test_advice_fits_what_was_done(result: qcompile.Result, config: qcompile.Config, steps: list[str]) -> None:
    model = replace(result.qmodel, config=config, data=None)
    assert advice(model, []) == f"try {', or '.join(steps)}"


PIECES = [
    Outcome("stem", "trained", True),
    Outcome("block", "not better after training: left as it was"),
    Outcome("head", "not trained", reason="no gradient of Round"),
]


def test_pieces_that_were_not_trained_are_warned_about() -> None:
    assert training_warnings(PIECES) == ["1 of 3 pieces were not trained: no gradient of Round (head)"]
    assert training_text(PIECES) == "1 of 3 pieces NOT TRAINED"
    assert (training_warnings(PIECES[:2]), training_text(PIECES[:2])) == ([], "")
    assert (training_warnings([]), training_text([])) == ([], "")


def test_training_that_trained_nothing_is_warned_about(result: qcompile.Result) -> None:
    assert training_text(PIECES[1:]) == "NOTHING TRAINED (0 of 2 pieces kept)"
    assert training_warnings(PIECES[1:2]) == ["training made no piece better; try more samples, or --effort max"]
    model = replace(result.qmodel, outcomes=PIECES[1:])
    assert verdict(model, AUDIT).endswith(", NOTHING TRAINED (0 of 2 pieces kept)")
    assert "1 of 2 pieces were not trained: no gradient of Round (head)" in warnings(model, AUDIT)


def test_many_names_are_shortened() -> None:
    assert shortened(list("abcd")) == "a, b, c, d"
    assert shortened(list("abcdef")) == "a, b, c, d and 2 more"
