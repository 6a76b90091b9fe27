"""Draw what a report says about units along the model: errors, capacities, and which units were trained together."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from qcompile.errors import InputError
from qcompile.files import parse_json, read_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]
Panel = Callable[["Axes", Report, Mapping[str, int]], None]
KINDS = (".png", ".svg")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched
    "svg.hashsalt": "qcompile",  # with no date, the same report gives the same bytes
    "font.size": 9,
}
MEGA = 1e6
UNIT_INCHES, HEIGHT_INCHES = 0.3, 2.2  # of one unit along the model, of one panel
PLAIN, MARKED, BEFORE = "#4c72b0", "#c44e52", "#8c8c8c"
SHADES = ("#fbe3c8", "#e6dcf0")  # of neighbouring regions


def read_report(path: Path) -> dict[str, Any]:
    """Read a report; raise InputError where it is none, or one of another version."""
    schema = json.loads(resources.files("qcompile.reporting").joinpath("schema.json").read_text(encoding="utf-8"))
    remedy = "give a file that --report of this version wrote"
    data = read_bytes(path, "report")
    try:
        report: dict[str, Any] = parse_json(data)
        jsonschema.validate(report, schema)
    except ValueError as error:
        raise InputError("not a report", where=str(path), remedy=remedy) from error
    except jsonschema.ValidationError as error:
        place = "/".join(map(str, error.absolute_path)) or "top"
        where = f"{path}: {place}: {error.message[:100]}"
        raise InputError("not a report of this version", where=where, remedy=remedy) from error
    return report


def kind_of(path: Path) -> str:
    """Return the kind of picture that `path` names; raise InputError unless `draw` makes it."""
    if (kind := path.suffix.lower()) not in KINDS:
        remedy = f"end its name in {' or '.join(KINDS)}"
        raise InputError("the figure has an unknown format", where=str(path), remedy=remedy)
    return kind


def draw(report: Report, kind: str) -> bytes:
    """Return the figure as .png or .svg. Raises InputError where there is nothing to draw or matplotlib is missing."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib", remedy="pip install 'qcompile[plot]'") from error
    panels = [panel for panel, holds in PANELS if holds(report)]
    if not panels:
        raise InputError("the report has nothing to draw: no unit was scored or trained", remedy="add --method mrecg")
    units = {row["name"]: index for index, row in enumerate(report["units"])}
    with mpl.rc_context(STYLE):
        size = (max(6.0, UNIT_INCHES * len(units)), HEIGHT_INCHES * len(panels) + 1)
        figure = Figure(figsize=size, layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
            _shade(axes, report, units)
            panel(axes, report, units)
            axes.set_yscale("log")
            axes.margins(x=0.01)
            axes.grid(axis="y", alpha=0.3)
            axes.legend(fontsize="small")
        axes.set_xticks(range(len(units)), list(units), rotation=90)
        heading = ": ".join(filter(None, (report["model"]["name"], report["verdict"])))
        title = figure.suptitle(heading, fontsize="medium", wrap=True)
        for text in (title, *axes.get_xticklabels()):
            text.set_parse_math(False)  # a $ in a name is a $
        drawn = io.BytesIO()
        figure.savefig(drawn, format=kind[1:], metadata={"Date": None} if kind == ".svg" else {})
    return drawn.getvalue()


def _shade(axes: Axes, report: Report, units: Mapping[str, int]) -> None:
    """Mark units that were trained together by one colour behind them."""
    fused = [row["units"] for row in report["regions"] if len(row["units"]) > 1]
    for number, region in enumerate(fused):
        for name in region:
            axes.axvspan(units[name] - 0.5, units[name] + 0.5, color=SHADES[number % len(SHADES)], linewidth=0)


def _errors(axes: Axes, report: Report, units: Mapping[str, int]) -> None:
    """Relative errors: of the first run by unit, and of the regions before and after training as the plan has it."""
    rows = report["regions"]
    first = [(units[row["name"]], row["loss"]) for row in report["units"] if row["loss"]]
    if first:
        axes.plot(*_columns(first), "x:", color=MARKED, linewidth=0.8, label="unit by unit")
    for moment, color in (("before", BEFORE), ("after", PLAIN)):
        errors = [(row["units"], row["after" if row["trained"] and moment == "after" else "before"]) for row in rows]
        points = [(units[names[-1]], error) for names, error in errors if error]
        axes.plot(*_columns(points), "o-", color=color, linewidth=0.8, markersize=4, label=f"{moment} training")
        for names, error in errors:
            if error and len(names) > 1:  # one error for all of them
                axes.plot([units[names[0]], units[names[-1]]], [error, error], color=color, linewidth=2)
    axes.set_ylabel("relative error")


def _capacities(axes: Axes, report: Report, units: Mapping[str, int]) -> None:
    points = [(units[row["name"]], row["capacity"] / MEGA) for row in report["units"] if row["capacity"]]
    axes.bar(*_columns(points), color=PLAIN, label="capacity")
    axes.set_ylabel("Mbit")


def _differentials(axes: Axes, report: Report, units: Mapping[str, int]) -> None:
    """Changes of capacity between adjacent units; equal ones have no bar, the scale being logarithmic."""
    for text, color, fused in (("change of capacity", PLAIN, False), ("fused", MARKED, True)):
        points = [
            ((units[row["first"]] + units[row["second"]]) / 2, abs(row["differential"]) / MEGA)
            for row in report["boundaries"]
            if row["fused"] is fused and row["differential"]
        ]
        axes.bar(*_columns(points), width=0.4, color=color, label=text)
    axes.set_ylabel("Mbit")


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _has_errors(report: Report) -> bool:
    return any(row["before"] for row in report["regions"]) or any(row["loss"] for row in report["units"])


PANELS: Sequence[tuple[Panel, Callable[[Report], bool]]] = (
    (_errors, _has_errors),
    (_capacities, lambda report: any(row["capacity"] for row in report["units"])),
    (_differentials, lambda report: any(row["differential"] for row in report["boundaries"])),
)
