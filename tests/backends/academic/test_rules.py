"""The rules of a float file: each one that is broken is found under its name."""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from qcompile.backends import check
from qcompile.backends.academic.rules import RULES
from qcompile.backends.academic.writer import MARK
from qcompile.targets.schema import Target

TARGET = Target.load("academic")
GOOD = """<ir_version: 8, opset_import: ["": 18]>
net (float[N,2,1,1] x) => (float[N,2,P,Q] y) <
  float s = {0.5}, float low = {-1.0}, float high = {6.5}, float[2,2,1,1] w = {1, -2, 3, 4}
> {
  [div] a = Div(x, s)  [round] b = Round(a)  [mul] c = Mul(b, s)  [clip] d = Clip(c, low, high)
  [conv] y = Conv(d, w)
}"""


def model(text: str = GOOD) -> onnx.ModelProto:
    parsed = parser.parse_model(text)
    for node in parsed.graph.node:
        if node.name == "clip":
            node.doc_string = f"{MARK}0 .. 15 in uint8, zero point 2"
    return parsed


def test_good_file_has_no_violation() -> None:
    onnx.checker.check_model(model(), full_check=True)
    assert check(model(), TARGET) == []


BROKEN = {
    "an integer operator": ("float-operators", "conv", "= Conv(d, w)", "= MatMulInteger(d, w)"),
    "two scales": ("whole-quantizers", "clip", "Mul(b, s)", "Mul(b, high)"),
    "no Round": ("whole-quantizers", "clip", "Round(a)", "Floor(a)"),
    "a bound beside the grid": ("whole-quantizers", "clip", "high = {6.5}", "high = {6.4}"),
    "a grid without zero": ("whole-quantizers", "clip", "low = {-1.0}", "low = {1.0}"),
    "a scale of zero": ("whole-quantizers", "clip", "s = {0.5}", "s = {0.0}"),
    "scales by channel": ("whole-quantizers", "clip", "float s = {0.5}", "float[1] s = {0.5}"),
    "an unused constant": ("no-unused-initializer", "w", "Conv(d, w)", "Conv(d, d)"),
    "a name twice": ("unique-names", "conv", "[div]", "[conv]"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_rule_is_found(case: str) -> None:
    rule, node, old, new = BROKEN[case]
    assert old in GOOD
    found = check(model(GOOD.replace(old, new)), TARGET)
    assert [(item.rule, item.node) for item in found] == [(rule, node)]


def test_every_rule_has_a_broken_example() -> None:
    assert {rule for rule, *_ in BROKEN.values()} == RULES.keys()


def test_a_model_that_quantizes_by_itself_is_left_alone() -> None:
    """The same operators, of the user's own making, with other bounds: no note, no quantizer of ours."""
    text = GOOD.replace("low = {-1.0}", "low = {1.0}")
    parsed = model(text)
    parsed.graph.node[3].doc_string = ""
    assert check(parsed, TARGET) == []
