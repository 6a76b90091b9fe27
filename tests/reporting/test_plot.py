from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
from PIL import Image

import qcompile
from qcompile.errors import InputError
from qcompile.reporting.plot import draw, kind_of, read_report

Report = dict[str, Any]


@pytest.fixture
def report(residual_model: onnx.ModelProto) -> Report:
    """A report of three units, as if the two first were trained together and the last were not."""
    residual_model.graph.node[0].name = "s$t$em"
    config = qcompile.Config(w=4, a=4, method="mrecg", fuse=(("0", "1"),), threads=1)
    made: Report = json.loads(qcompile.plan_only(residual_model, config).report_text())
    made["regions"][0] |= {"before": 0.02, "after": 0.01, "trained": True}
    made["regions"][1] |= {"before": 0.03, "after": 0.04}
    made["units"][1]["loss"] = 0.015
    return made


def texts(svg: bytes) -> list[str]:
    """Return what an SVG says."""
    return [
        "".join(item.itertext()).strip()
        for item in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_a_figure_names_units_and_shows_errors_and_capacities(report: Report) -> None:
    found = texts(draw(report, ".svg"))
    assert [name for name in found if name in {row["name"] for row in report["units"]}] == [
        "s$t$em",
        "branch",
        "logits",
    ]
    for label in ("relative error", "before training", "after training", "unit by unit", "capacity", "fused"):
        assert label in found


def test_the_same_report_gives_the_same_figure(report: Report) -> None:
    assert draw(report, ".svg") == draw(report, ".svg")


def test_png(report: Report) -> None:
    with Image.open(io.BytesIO(draw(report, kind_of(Path("figure.PNG"))))) as image:
        assert image.format == "PNG" and min(image.size) > 400


def test_capacities_alone_are_drawn_without_errors(report: Report) -> None:
    for row in report["regions"]:
        row |= {"before": None, "after": None}
    report["units"][1]["loss"] = None
    found = texts(draw(report, ".svg"))
    assert "capacity" in found and "relative error" not in found


def test_errors_alone_are_drawn_without_capacities(report: Report) -> None:
    report["boundaries"] = []
    for row in report["units"]:
        row["capacity"] = None
    found = texts(draw(report, ".svg"))
    assert "relative error" in found and "capacity" not in found


def test_nothing_to_draw(residual_model: onnx.ModelProto) -> None:
    report = json.loads(qcompile.plan_only(residual_model).report_text())
    with pytest.raises(InputError, match="nothing to draw: no unit was scored or trained; add --method mrecg"):
        draw(report, ".svg")


def test_without_matplotlib_it_says_how_to_get_it(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"drawing needs matplotlib; pip install 'qcompile\[plot\]'"):
        draw(report, ".svg")


def test_only_reports_are_read(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(path) == report
    del report["units"][0]["capacity"]
    path.write_text(json.dumps(report))
    with pytest.raises(
        InputError, match=r"not a report of this version \(.*units/0: 'capacity' is a required property"
    ):
        read_report(path)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"not a report .*give a file that --report of this version wrote"):
        read_report(path)
    with pytest.raises(InputError, match="cannot read the report"):
        read_report(tmp_path)


@pytest.mark.parametrize("name", ["figure", "figure.pdf", "svg"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown format .*; end its name in .png or .svg"):
        kind_of(Path(name))
