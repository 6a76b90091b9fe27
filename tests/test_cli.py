"""What the command line does."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import onnx
import pytest
from command_line import COMPILE, DATA, Run, names

from qcompile.config import Config, Files
from qcompile.targets.schema import Target, known

ACADEMIC = ("--target", "academic")


def test_the_sub_command_may_be_left_out(run: Run, folder: Path) -> None:
    assert run(*COMPILE, "-q").code == 0
    first = (folder / "out.onnx").read_bytes()
    assert run("compile", *COMPILE, "-q").code == 0
    assert (folder / "out.onnx").read_bytes() == first
    assert run("-q", *DATA, "-o", "out.onnx", "in.onnx").code == 0
    assert names(folder) == {"in.onnx", "calib.npz", "out.onnx"}
    onnx.checker.check_model(onnx.load(folder / "out.onnx"))


def test_plan_first_batch_audit_and_verdict_are_shown_in_this_order(run: Run) -> None:
    _, out, err = run(*COMPILE, "--w", "4", "--a", "4")
    marks = [
        "Plan for ort-cpu",
        "first or last",
        "first batch  image: [16, 3, 8, 8]",
        "kernels      ",
        "Before and after",
        "out.onnx: w4a4 for",
    ]
    places = [out.index(mark) for mark in marks]
    assert places == sorted(places)
    assert out.count("float, ") == 1  # the one float node is named with the plan
    assert "Traceback" not in err and "━" not in err  # no progress bar where stderr is no terminal


def test_a_terminal_without_a_width_shows_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "--threads", "1")
    assert "Before and after" in ended.out and "warning: calibrated on random data" in ended.err


def test_quiet_leaves_the_verdict(run: Run) -> None:
    ended = run(*COMPILE, "-q")
    assert len(ended.out.splitlines()) == 1 and ended.out.startswith("out.onnx: w8a8 for ort-cpu, ")
    assert all(line.startswith("warning: ") for line in ended.err.splitlines())


def test_verbose_shows_each_pass(run: Run) -> None:
    err = run(*COMPILE, "-v").err
    for name in ("normalize-graph", "calibrate", "validate"):
        assert any(line.startswith(name) and " s " in line for line in err.splitlines())


def test_precision_is_short_for_both_bits(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "4", "--a", "3")
    first = (folder / "out.onnx").read_bytes()
    run(*COMPILE, "-q", "--precision", "w4a3")
    assert (folder / "out.onnx").read_bytes() == first


def test_flags_override_the_recipe(run: Run, folder: Path) -> None:
    (folder / "recipe.toml").write_text('w = 4\na = 4\nkeep-float = ["branch"]\ndata = "calib.npz"\nout = "out.onnx"\n')
    ended = run("in.onnx", "--config", "recipe.toml", "--a", "6", "--report", "report.json", "-q")
    assert ended.code == 0
    recipe = json.loads((folder / "report.json").read_text())["recipe"]
    assert (recipe["w"], recipe["a"], recipe["keep-float"]) == (4, 6, ["branch"])


def test_a_saved_recipe_does_the_same(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "3", "--bits", "branch=2,4", "--residual-bits", "a", "--save-config", "recipe.toml")
    first = (folder / "out.onnx").read_bytes()
    assert run("-q", "--config", "recipe.toml").code == 0  # the model is in it too
    assert (folder / "out.onnx").read_bytes() == first


def test_plan_alone_needs_no_data_and_writes_nothing(run: Run, folder: Path) -> None:
    ended = run("in.onnx", "--plan", "--w", "4")
    assert (ended.code, ended.err) == (0, "")
    assert "Plan for ort-cpu" in ended.out and "Before and after" not in ended.out
    assert names(folder) == {"in.onnx", "calib.npz"}


def test_a_saved_plan_gives_the_same_file_without_data(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--w", "4", "--a", "4", "--save-plan", "plan.npz")
    assert run("in.onnx", "-o", "again.onnx", "-q", "--load-plan", "plan.npz").code == 0
    assert (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


def test_settings_that_a_plan_overrules_are_told_once(run: Run, folder: Path) -> None:
    run(*COMPILE, "-q", "--method", "rtn", "--save-plan", "plan.npz")
    (folder / "recipe.toml").write_text('w = 4\nmethod = "rtn"\n')
    ended = run("in.onnx", "-o", "again.onnx", "--load-plan", "plan.npz", "--config", "recipe.toml")
    assert "warning: w, method have no effect: the plan decides" in ended.err.splitlines()
    assert "no effect" not in ended.out


def test_a_data_function_may_go_elsewhere(run: Run, folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "going.py").write_text(
        "import numpy as np, os\nimages = np.load('calib.npz')['image']\n"
        f"def samples():\n    os.chdir({str(folder / 'there')!r})\n    yield images\n"
    )
    ended = run("in.onnx", "-o", "out.onnx", "--data", "going:samples", "--threads", "1", "-q", "--report", "r.json")
    assert ended.code == 0, ended.err
    assert {"out.onnx", "r.json"} <= names(folder) and names(folder / "there") == set()


def test_random_data_is_warned_about(run: Run) -> None:
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "-q", "--threads", "1")
    assert ended.code == 0
    assert "random data" in ended.err


def test_strict_ends_with_3_where_there_is_a_warning(run: Run, folder: Path) -> None:
    ended = run("in.onnx", "-o", "out.onnx", "--random-data", "-q", "--threads", "1", "--strict")
    assert (ended.code, (folder / "out.onnx").exists()) == (3, True)
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: --strict: ") and "warning" in last and "all files are written" in last
    assert run("in.onnx", "--plan", "--strict").code == 0


def test_help_is_one_screen_with_every_flag(run: Run) -> None:
    code, text, _ = run("--help")
    assert code == 0
    assert len(text.splitlines()) <= 75 and max(map(len, text.splitlines())) <= 80
    assert run("-h").out == text
    for item in (*fields(Config), *fields(Files)):
        assert f"--{item.name.replace('_', '-')}" in text or item.name == "model"
    assert "qcompile plot report.json" in text and run("plot", "-h").out.startswith("Usage: qcompile plot")
    for group in ("Precision:", "Fusion:", "Data:", "Output:", "Recipe:", "Run:", "Examples:"):
        assert group in text


def test_plot_draws_a_report(run: Run, folder: Path) -> None:
    assert run("in.onnx", "--plan", "-q", "--method", "mrecg", "--fuse", "0+branch", "--report", "plot").code == 0
    ended = run("plot", "plot", "-o", "figure.svg")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert (folder / "figure.svg").read_text().startswith("<?xml")


def test_targets_are_listed_with_what_was_proven(run: Run) -> None:
    code, text, err = run("targets")
    assert (code, err) == (0, "")
    lines = [line for line in text.splitlines() if line.strip()]
    assert lines[0].split("  ")[0] == "--target" and max(map(len, lines)) <= 120
    for name in known():
        target = Target.load(name)
        assert target.purpose and target.proven
        assert any(line.startswith(f"{name}  ") for line in lines[1:])
    assert run("targets", "-h").out.startswith("Usage: qcompile targets")


def test_a_float_graph_for_papers(run: Run, folder: Path) -> None:
    ended = run(*COMPILE, "--target", "academic", "--w", "4", "--a", "4", "--method", "rtn", "--report", "r.json")
    assert ended.code == 0
    verdict = ended.out.splitlines()[-1]
    assert verdict.startswith("out.onnx: w4a4 for academic, a float graph, ") and "speed" not in verdict
    assert "Plan for academic" in ended.out and "integer kernel" not in ended.out
    report = json.loads((folder / "r.json").read_text())
    assert report["target"]["name"] == "academic"
    assert report["audit"]["fused"] is None and report["audit"]["speed"] is None
    operators = {node.op_type for node in onnx.load("out.onnx").graph.node}
    assert {"Div", "Round", "Mul", "Clip"} <= operators and not any("Quantize" in op for op in operators)


def test_a_plan_is_for_one_target(run: Run) -> None:
    assert run(*COMPILE, "--save-plan", "p.npz", "--target", "academic").code == 0
    ended = run(*COMPILE, "--load-plan", "p.npz")
    assert (ended.code, "the plan was made for target 'academic', not 'ort-cpu' (p.npz)" in ended.err) == (2, True)
    assert run(*COMPILE, "--load-plan", "p.npz", "--target", "academic").code == 0


def test_a_model_called_plot_is_compiled(run: Run, folder: Path) -> None:
    (folder / "in.onnx").rename(folder / "plot")
    ended = run("plot", "--plan")
    assert (ended.code, ended.err) == (
        2, "error: unknown flag --plan; see qcompile plot --help; a model of the name plot is ./plot\n"
    )  # fmt: skip
    for arguments in (("./plot",), ("compile", "plot"), ("-q", "plot")):
        assert run(*arguments, "--plan").code == 0


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("qcompile ")
